"""Encoding and decoding a picture tile by tile, each tile a stream, so that tiles are pieces of the untiled result.

Convolutions reach a known number of positions, so a tile that starts out larger and loses its rim on the way ends as
exactly the piece of the whole. The rim is counted back from the result, step by step; where it would leave the picture
there is the picture's border instead. What sees the whole picture, the attention in the middle, runs on the whole clip
at the size of the latents: before the tiles of a decoder, behind those of an encoder.

A rim of latent positions is a wide one in pixels, which an encoder would compute where that costs most. So its tiles
end after every second level and are put together there (:meth:`TiledEncoder.stages`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from types import EllipsisType

import torch
from torch import Tensor, nn

from omnihuman_vae.layers import Cache

Span = tuple[int, int]
Sides = tuple[int, int, int, int]
"""Whether a tile ends inside the picture: at its top, bottom, left and right."""

Place = tuple[EllipsisType, slice, slice, slice]
"""Frames, rows and columns of a result."""

WHOLE: Sides = (0, 0, 0, 0)

STAGE_LEVELS = 2
"""Levels of an encoder that its tiles run through before they are put together."""


class TileCache(Cache):
    """What a tile's stream carries, and where the tile ends inside the picture.

    Attributes:
        inside: Sides at which the input of the next module goes on; a convolution takes no border there.
        statistics: Of the norms that have some, which are the same for all tiles.
    """

    def __init__(self, statistics: Cache) -> None:
        super().__init__()
        self.inside: Sides = WHOLE
        self.statistics = statistics


def sides_inside(cache: Cache | None) -> Sides:
    """Sides at which what a cache belongs to ends inside the picture."""
    return cache.inside if isinstance(cache, TileCache) else WHOLE


@dataclass(frozen=True)
class Step:
    """A module that sees a neighbourhood.

    Attributes:
        module: Maps the next frames ``(B, C, T, H, W)`` and a cache to theirs.
        reach: Positions that it sees before and behind a position, counted at the finer of its two ends.
        up: Times that it enlarges the picture.
        down: Times that it reduces the picture.
        frames: Frames behind each frame of its result, but for a clip's first.
    """

    module: Callable[[Tensor, Cache | None], Tensor]
    reach: Span
    up: int = 1
    down: int = 1
    frames: int = 1

    def size(self, length: int) -> int:
        """Length of a side of its result."""
        return length * self.up // self.down

    def needs(self, wanted: Span) -> Span:
        """Positions behind those of its result; they may lie outside the picture."""
        start, stop = wanted[0] * self.down - self.reach[0], wanted[1] * self.down + self.reach[1]
        return start // self.up, -(-stop // self.up)

    def first(self, start: int) -> int:
        """First position of the result where the input begins at ``start``; no rim is lost at the picture's border."""
        return (start * self.up + self.reach[0]) // self.down if start else 0


def spans(steps: Sequence[Step], length: int, wanted: Span) -> list[Span]:
    """Along one side, what each step needs to have for ``wanted`` positions of the result, and last ``wanted`` itself.

    Args:
        steps: In the order in which they run.
        length: Of the whole side in positions of the first step's input.
        wanted: First position, and the one behind the last.
    """
    lengths = [length]
    for step in steps:
        lengths.append(step.size(lengths[-1]))
    result = [wanted]
    for step, size in zip(reversed(steps), reversed(lengths[:-1]), strict=True):
        start, stop = step.needs(result[0])
        result.insert(0, (max(start, 0), min(stop, size)))
    return result


def run_tile(steps: Sequence[Step], x: Tensor, rows: Span, columns: Span, statistics: Cache) -> Iterator[Tensor]:
    """One tile of a clip, as few frames at a time as the steps allow.

    Args:
        steps: In the order in which they run.
        x: Input of the first step for the whole picture, ``(B, C, T, H, W)``.
        rows: Positions of the result from top to bottom.
        columns: Positions of the result from left to right.
        statistics: Of the norms that have some, the same for all tiles.

    Yields:
        ``(B, C', T_i, rows, columns)``.
    """
    cache = TileCache(statistics)
    frames = reduce(lambda total, step: total * step.frames, steps, 1)
    all_rows, all_columns = spans(steps, x.shape[3], rows), spans(steps, x.shape[4], columns)
    whole = x[..., slice(*all_rows[0]), slice(*all_columns[0])]
    for piece in torch.split(whole, [1, *(frames,) * ((x.shape[2] - 1) // frames)], dim=2):
        height, width = x.shape[3:]
        top, left = all_rows[0][0], all_columns[0][0]
        for step, (_, bottom), (_, right), next_rows, next_columns in zip(
            steps, all_rows, all_columns, all_rows[1:], all_columns[1:], strict=False
        ):
            cache.inside = (int(top > 0), int(bottom < height), int(left > 0), int(right < width))
            piece = step.module(piece, cache)
            height, width = step.size(height), step.size(width)
            # The first row and column of the result in the whole picture.
            top, left = step.first(top), step.first(left)
            piece = piece[
                ..., next_rows[0] - top : next_rows[1] - top, next_columns[0] - left : next_columns[1] - left
            ]  # (B, C', T_i, rows, columns)
            top, left = next_rows[0], next_columns[0]
        yield piece


def run_tiles(steps: Sequence[Step], x: Tensor, tile: int, statistics: Cache) -> Iterator[tuple[Place, Tensor]]:
    """All tiles of a clip, one after the other; see :func:`run_tile`.

    Args:
        steps: In the order in which they run.
        x: Input of the first step for the whole picture, ``(B, C, T, H, W)``.
        tile: Largest height and width of a tile in positions of the result.
        statistics: Of the norms that have some, the same for all tiles.

    Yields:
        A piece of the result, and its place in the whole.
    """
    height, width = (reduce(lambda length, step: step.size(length), steps, length) for length in x.shape[3:])
    for rows in cuts(height, tile):
        for columns in cuts(width, tile):
            done = 0
            for piece in run_tile(steps, x, rows, columns, statistics):
                yield (..., slice(done, done + piece.shape[2]), slice(*rows), slice(*columns)), piece
                done += piece.shape[2]


def cuts(length: int, tile: int) -> list[Span]:
    """A side in equal parts of at most about ``tile``."""
    count = max(-(-length // tile), 1)
    bounds = [length * i // count for i in range(count + 1)]
    return list(zip(bounds[:-1], bounds[1:], strict=True))


class TiledEncoder(nn.Module, ABC):
    """``(B, 3, T, H, W)`` to ``(B, 2C, t, h, w)``: levels that see a neighbourhood, then a middle that sees everything.

    A subclass makes ``conv_in`` and ``mid_block``.
    """

    conv_in: nn.Module
    mid_block: nn.Module

    @abstractmethod
    def levels(self) -> list[list[Step]]:
        """Steps of each level, from pixels to latents."""

    @abstractmethod
    def head(self, x: Tensor, cache: Cache | None) -> Tensor:
        """Moments, from the result of the middle."""

    def forward(self, video: Tensor, cache: Cache | None = None) -> Tensor:
        """Moments of the next frames, before the last mixing of channels."""
        x = video
        for step in chain(*self.stages()):
            x = step.module(x, cache)
        return self.finish(x, cache)

    def stages(self) -> list[list[Step]]:
        """What sees a neighbourhood, from pixels to :meth:`finish`, divided where tiles are put together."""
        levels = self.levels()
        stages = [[*chain(*levels[i : i + STAGE_LEVELS])] for i in range(0, len(levels), STAGE_LEVELS)]
        stages[0].insert(0, Step(self.conv_in, reach=(1, 1)))
        return stages

    def finish(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """What sees the whole picture, at the size of the latents."""
        return self.head(self.mid_block(x, cache), cache)


class TiledDecoder(nn.Module, ABC):
    """``(B, C, t, h, w)`` to ``(B, 3, T, H, W)``: a middle that sees everything, then levels that see a neighbourhood.

    A subclass makes ``conv_in``, ``mid_block`` and ``up_blocks``, each of which has ``resnets`` and ``upsamplers``.
    """

    conv_in: nn.Module
    mid_block: nn.Module
    up_blocks: nn.ModuleList

    @abstractmethod
    def head(self, x: Tensor, cache: Cache | None) -> Tensor:
        """Pixels, from the result of the last level."""

    def forward(self, latents: Tensor, cache: Cache | None = None) -> Tensor:
        """Pixels of the next latent frames."""
        x = self.stem(latents, cache)
        for step in self.steps():
            x = step.module(x, cache)
        return x

    def stem(self, latents: Tensor, cache: Cache | None = None) -> Tensor:
        """What sees the whole picture, at the size of the latents."""
        x: Tensor = self.mid_block(self.conv_in(latents, cache), cache)
        return x

    def steps(self) -> list[Step]:
        """What sees a neighbourhood, from :meth:`stem` to pixels."""
        steps = []
        for level in self.up_blocks:
            steps += [Step(block, reach=(2, 2)) for block in level.get_submodule("resnets").children()]
            steps += [Step(block, reach=(2, 2), up=2) for block in level.get_submodule("upsamplers").children()]
        return [*steps, Step(self.head, reach=(1, 1))]
