"""Spatial tiling of any video VAE: large frames at the memory of one tile."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from omnihuman_core.contracts.latents import LatentSpec
from omnihuman_core.contracts.vae import VideoVAE


@dataclass(frozen=True, kw_only=True)
class TilingConfig:
    """Tiles, in pixels.

    Attributes:
        tile_size: Height and width of a tile; a multiple of the VAE's spatial stride.
        overlap: Pixels that neighbours share and over which they are blended linearly; a multiple of the stride, at
            most half a tile. Seams vanish as it approaches twice the reach of the network's convolutions.
    """

    tile_size: int = 512
    overlap: int = 128

    def __post_init__(self) -> None:
        if self.tile_size < 1:
            raise ValueError(f"TilingConfig.tile_size must be positive, got {self.tile_size}")
        if not 0 <= self.overlap <= self.tile_size // 2:
            most = self.tile_size // 2
            raise ValueError(f"TilingConfig.overlap must be between 0 and half a tile ({most}), got {self.overlap}")


@dataclass(frozen=True)
class _Tile:
    """A tile in latent positions."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, x: Tensor, stride: int) -> Tensor:
        """The tile out of ``(B, C, T, H, W)`` that has ``stride`` positions per latent position."""
        rows = slice(self.top * stride, (self.top + self.height) * stride)
        columns = slice(self.left * stride, (self.left + self.width) * stride)
        return x[..., rows, columns]


@runtime_checkable
class ExactTiles(Protocol):
    """A VAE whose tiles are pieces of the untiled picture, so that nothing has to be blended."""

    def encode_tiled(self, video: Tensor, tile_size: int, *, generator: Generator | None = None) -> Tensor:
        """Final latents ``(B, C, t, h, w)`` of a video, in tiles of at most ``tile_size`` pixels a side."""
        ...

    def decode_tiled(self, latents: Tensor, tile_size: int) -> Tensor:
        """Video ``(B, 3, T, H, W)`` of final latents, in tiles of at most ``tile_size`` pixels a side."""
        ...


class TiledVideoVAE:
    """A :class:`VideoVAE` that runs another one tile by tile and blends what overlaps.

    Pictures that fit one tile go through unchanged. Close to the seams the result depends on the part of the picture
    that a tile does not see; see :attr:`TilingConfig.overlap`.

    Args:
        vae: The VAE to run.
        config: The tiles.

    Raises:
        ValueError: tile size or overlap is not a multiple of the VAE's spatial stride.
    """

    def __init__(self, vae: VideoVAE, config: TilingConfig | None = None) -> None:
        config = TilingConfig() if config is None else config
        stride = vae.latent_spec.spatial_stride
        for name, value in (("tile_size", config.tile_size), ("overlap", config.overlap)):
            if value % stride:
                raise ValueError(f"TilingConfig.{name} must be a multiple of {stride}, got {value}")
        self.vae = vae
        self.config = config

    @property
    def latent_spec(self) -> LatentSpec:
        """Sizes of the VAE that runs."""
        return self.vae.latent_spec

    @property
    def streaming_tolerance(self) -> float | None:
        """Tolerance of the VAE that runs: every tile is streamed on its own."""
        return self.vae.streaming_tolerance

    def encode(self, video: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Encode ``(B, 3, T, H, W)`` to final latents ``(B, C, t, h, w)``; see the contract.

        With :class:`ExactTiles` nothing is blended, and the overlap is what the VAE asks for. Otherwise, with a
        generator every tile draws its own noise, so that the posterior's noise is weaker where tiles overlap.
        """
        if isinstance(self.vae, ExactTiles):
            return self.vae.encode_tiled(video, self.config.tile_size, generator=generator)
        spec = self.latent_spec
        tiles = self._tiles(*spec.latent_size(*video.shape[-2:]))
        parts = (self.vae.encode(tile.cut(video, spec.spatial_stride), generator=generator) for tile in tiles)
        return self._blend(tiles, parts, stride=1)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode final latents ``(B, C, t, h, w)`` to video ``(B, 3, T, H, W)``; see the contract.

        With :class:`ExactTiles` nothing is blended, and the overlap is what the VAE asks for.
        """
        if isinstance(self.vae, ExactTiles):
            return self.vae.decode_tiled(latents, self.config.tile_size)
        tiles = self._tiles(*latents.shape[-2:])
        parts = (self.vae.decode(tile.cut(latents, 1)) for tile in tiles)
        return self._blend(tiles, parts, stride=self.latent_spec.spatial_stride)

    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Decode consecutive pieces of one clip, ``(B, C, t_i, h, w)`` each, at constant memory; see the contract."""
        tiles: list[_Tile] = []
        waiting: list[deque[Tensor]] = []
        streams: list[Iterator[Tensor]] = []
        for chunk in chunks:
            if not streams:
                tiles = self._tiles(*chunk.shape[-2:])
                waiting = [deque() for _ in tiles]
                streams = [self.vae.decode_stream(_drain(pieces)) for pieces in waiting]
            for tile, pieces in zip(tiles, waiting, strict=True):
                pieces.append(tile.cut(chunk, 1))
            # One piece waits in front of each stream: one step of every stream decodes exactly this chunk.
            parts = (next(stream) for stream in streams)
            yield self._blend(tiles, parts, stride=self.latent_spec.spatial_stride)

    def _tiles(self, height: int, width: int) -> list[_Tile]:
        stride = self.latent_spec.spatial_stride
        size, overlap = self.config.tile_size // stride, self.config.overlap // stride
        return [
            _Tile(top, left, min(size, height), min(size, width))
            for top in _starts(height, size, overlap)
            for left in _starts(width, size, overlap)
        ]

    def _blend(self, tiles: list[_Tile], parts: Iterable[Tensor], *, stride: int) -> Tensor:
        """Weighted mean of the tiles; ``stride`` is the number of output positions per latent position."""
        rest = iter(parts)
        first = next(rest)
        if len(tiles) == 1:
            return first
        height = max(tile.top + tile.height for tile in tiles) * stride
        width = max(tile.left + tile.width for tile in tiles) * stride
        ramp = self.config.overlap // self.latent_spec.spatial_stride * stride
        total = first.new_zeros((*first.shape[:-2], height, width), dtype=torch.float32)
        weights = total.new_zeros((height, width))
        for tile, part in zip(tiles, chain([first], rest), strict=True):
            rows = _ramps(part.shape[-2], ramp, before=tile.top > 0, after=(tile.top + tile.height) * stride < height)
            columns = _ramps(
                part.shape[-1], ramp, before=tile.left > 0, after=(tile.left + tile.width) * stride < width
            )
            weight = torch.outer(rows, columns).to(part.device)  # (H, W)
            tile.cut(total, stride).add_(part.float() * weight)
            tile.cut(weights, stride).add_(weight)
        return (total / weights).to(first.dtype)


def _starts(length: int, size: int, overlap: int) -> list[int]:
    """First positions of the tiles along one side; the last tile ends at the border."""
    if length <= size:
        return [0]
    return [*range(0, length - size, size - overlap), length - size]


def _ramps(length: int, ramp: int, *, before: bool, after: bool) -> Tensor:
    """Weights ``(length,)`` that rise linearly where a neighbour lies before and fall where one lies after."""
    weight = torch.ones(length)
    rising = (torch.arange(ramp) + 0.5) / max(ramp, 1)
    if before:
        weight[:ramp] *= rising
    if after:
        weight[length - ramp :] *= rising.flip(0)
    return weight


def _drain(pieces: deque[Tensor]) -> Iterator[Tensor]:
    while pieces:
        yield pieces.popleft()
