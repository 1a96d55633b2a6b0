"""Decoding a picture tile by tile, each tile a stream, so that the tiles are pieces of the untiled result.

Convolutions reach a known number of positions, so a tile that starts out larger and loses its rim on the way ends as
exactly the piece of the whole. The rim is counted back from the pixels, level by level; where it would leave the
picture there is the picture's border instead. What sees the whole picture, the attention in the middle, runs before on
the whole clip, at the size of the latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from omnihuman_vae.layers import Cache

Span = tuple[int, int]
Sides = tuple[int, int, int, int]
"""Whether a tile ends inside the picture: at its top, bottom, left and right."""

WHOLE: Sides = (0, 0, 0, 0)


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
    """A module of the decoder's tail: positions of its result that it reaches, whether it doubles the picture."""

    module: Callable[[Tensor, Cache | None], Tensor]
    reach: int
    doubles: bool = False


def spans(steps: Sequence[Step], length: int, wanted: Span) -> list[Span]:
    """Along one side, what each step needs to have for ``wanted`` pixels, and last ``wanted`` itself.

    Args:
        steps: From latents to pixels.
        length: Of the whole side in latent positions.
        wanted: First pixel, and the one behind the last.
    """
    lengths = [length]
    for step in steps:
        lengths.append(lengths[-1] * (2 if step.doubles else 1))
    result = [wanted]
    for step, size in zip(reversed(steps), reversed(lengths[:-1]), strict=True):
        start, stop = result[0][0] - step.reach, result[0][1] + step.reach
        if step.doubles:
            start, stop = start // 2, -(-stop // 2)
        result.insert(0, (max(start, 0), min(stop, size)))
    return result


def decode_tile(
    steps: Sequence[Step], pieces: Iterable[Tensor], rows: Span, columns: Span, statistics: Cache
) -> Iterator[Tensor]:
    """One tile of consecutive pieces of a clip.

    Args:
        steps: From latents to pixels.
        pieces: Inputs of the first step for the whole picture, ``(B, C, t_i, h, w)``.
        rows: Pixels of the tile from top to bottom.
        columns: Pixels of the tile from left to right.
        statistics: Of the norms that have some, the same for all tiles.

    Yields:
        ``(B, C', T_i, rows, columns)``.
    """
    cache = TileCache(statistics)
    for piece in pieces:
        height, width = piece.shape[-2:]
        all_rows, all_columns = spans(steps, height, rows), spans(steps, width, columns)
        top, left = all_rows[0][0], all_columns[0][0]
        x = piece[..., slice(*all_rows[0]), slice(*all_columns[0])]
        for step, (_, bottom), (_, right), next_rows, next_columns in zip(
            steps, all_rows, all_columns, all_rows[1:], all_columns[1:], strict=False
        ):
            cache.inside = (int(top > 0), int(bottom < height), int(left > 0), int(right < width))
            x = step.module(x, cache)
            factor = 2 if step.doubles else 1
            height, width = factor * height, factor * width
            # The first row and column of the result in the whole picture.
            top, left = (factor * start + step.reach if start else 0 for start in (top, left))
            x = x[
                ..., next_rows[0] - top : next_rows[1] - top, next_columns[0] - left : next_columns[1] - left
            ]  # (B, C', T_i, rows, columns)
            top, left = next_rows[0], next_columns[0]
        yield x


def cuts(length: int, tile: int) -> list[Span]:
    """A side in equal parts of at most about ``tile``."""
    count = max(-(-length // tile), 1)
    bounds = [length * i // count for i in range(count + 1)]
    return list(zip(bounds[:-1], bounds[1:], strict=True))
