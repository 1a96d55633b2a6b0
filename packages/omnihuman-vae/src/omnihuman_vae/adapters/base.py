"""What the native classes for public checkpoints share: checks, normalisation, and the order of the calls."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn

from omnihuman_core.contracts.latents import LatentSpec
from omnihuman_vae.adapters.causal import channels_last
from omnihuman_vae.adapters.tiles import Step, run_tiles
from omnihuman_vae.distribution import DiagonalGaussian
from omnihuman_vae.layers import Cache

# Bounds of the public implementations.
LOGVAR_RANGE = (-30.0, 20.0)


class PublicVAEConfig(Protocol):
    """What :class:`PublicVideoVAE` asks of a configuration."""

    @property
    def latent_spec(self) -> LatentSpec:
        """Sizes of the latents."""
        ...

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation that normalise each latent channel."""
        ...


class PublicVideoVAE(nn.Module, ABC):
    """A :class:`omnihuman_core.contracts.vae.VideoVAE` whose subclass gives moments and pixels of the next frames."""

    config: Any
    encoder: Any
    decoder: Any
    quant_conv: nn.Module
    post_quant_conv: nn.Module
    streaming_tolerance: float | None = None

    @abstractmethod
    def moments(self, video: Tensor, cache: Cache | None) -> Tensor:
        """Means, then log-variances ``(B, 2C, t, h, w)`` of the next frames; ``cache`` None for a whole clip."""

    @abstractmethod
    def pixels(self, latents: Tensor, cache: Cache | None) -> Tensor:
        """Video ``(B, 3, T, H, W)`` of the next latent frames, which are not normalised."""

    @property
    def latent_spec(self) -> LatentSpec:
        """Answers every question about sizes."""
        spec: LatentSpec = self.config.latent_spec
        return spec

    def encode(self, video: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Encode ``(B, 3, T, H, W)`` in [-1, 1] to final latents ``(B, C, t, h, w)``; see the contract."""
        self._check_video(video, starts=True)
        return self._latents(self.whole_moments(self._own(video)), generator, video.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode final latents ``(B, C, t, h, w)`` to video ``(B, 3, T, H, W)``, not clamped; see the contract."""
        self._check_latents(latents)
        return self.whole_pixels(self._denormalize(latents)).to(latents.dtype)

    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Encode consecutive pieces of one clip at constant memory.

        Args:
            chunks: ``(B, 3, T_i, H, W)``; the first has ``1 + k * temporal_stride`` frames, the others a multiple of
                ``temporal_stride``.

        Yields:
            Final latents of each piece, ``(B, C, t_i, h, w)``: the posterior mean.

        Raises:
            ValueError: a size does not fit.
        """
        cache: Cache = {}
        starts = True
        for chunk in chunks:
            self._check_video(chunk, starts=starts)
            mean, _ = self.moments(self._own(chunk), cache).chunk(2, dim=1)
            yield self._normalize(mean, chunk.dtype)
            starts = False

    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Decode consecutive pieces of one clip, ``(B, C, t_i, h, w)`` each, at constant memory; see the contract."""
        cache: Cache = {}
        for chunk in chunks:
            self._check_latents(chunk)
            yield self.pixels(self._denormalize(chunk), cache).to(chunk.dtype)

    def encode_tiled(self, video: Tensor, tile_size: int, *, generator: Generator | None = None) -> Tensor:
        """Encode a whole clip tile after tile, each a stream; the counterpart of :meth:`decode_tiled`.

        Equal to :meth:`encode` where norms see one position at a time; noise is drawn for the whole clip. Beside one
        tile there is the whole clip behind each stage of the encoder: 6 (Wan) or 8 (HunyuanVideo) values a pixel in the
        published models.

        Args:
            video: ``(B, 3, T, H, W)`` in [-1, 1].
            tile_size: Largest height and width of a tile, in pixels; each tile computes some pixels around it too.
            generator: Samples the posterior when given; the posterior mean otherwise.

        Raises:
            ValueError: video has the wrong shape, or ``tile_size`` is not positive.
        """
        self._check_video(video, starts=True)
        _check_tile_size(tile_size)
        x = video.to(next(self.parameters()).dtype)
        scale = 1
        for stage, steps in enumerate(self.encoder.stages()):
            scale *= math.prod(step.down for step in steps)
            frames = 1 + (x.shape[2] - 1) // math.prod(step.frames for step in steps)
            # A later stage has more channels at fewer positions: twice as wide a tile is about as large in memory.
            tile = max(tile_size * 2**stage // scale, 1)
            out: Tensor | None = None
            for place, piece in run_tiles(steps, x, tile, self.tile_statistics(steps, x)):
                if out is None:
                    size = (frames, video.shape[3] // scale, video.shape[4] // scale)
                    out = channels_last(piece, piece.shape[1], *size)
                out[place] = piece
            assert out is not None
            x = out
        return self._latents(self.quant_conv(self.encoder.finish(x)), generator, video.dtype)

    def decode_tiled(self, latents: Tensor, tile_size: int) -> Tensor:
        """Decode a whole clip tile after tile, each a stream, at the memory of one tile and of the result.

        The tiles are pieces of the untiled picture, nothing is blended: equal to :meth:`decode` where norms see one
        position at a time. Other norms take their statistics from a part of the clip (:meth:`tile_statistics`).

        Args:
            latents: Final latents ``(B, C, t, h, w)``.
            tile_size: Largest height and width of a tile, in pixels; each tile computes some pixels around it too.

        Raises:
            ValueError: latents have the wrong shape, or ``tile_size`` is not positive.
        """
        self._check_latents(latents)
        _check_tile_size(tile_size)
        features = self.decoder.stem(self.post_quant_conv(self._denormalize(latents)))
        steps, spec = self.decoder.steps(), self.latent_spec
        size = (spec.pixel_frames(latents.shape[2]), *spec.pixel_size(*latents.shape[3:]))
        out = latents.new_empty((latents.shape[0], 3, *size))
        for place, piece in run_tiles(steps, features, tile_size, self.tile_statistics(steps, features)):
            out[place] = piece
        return out

    def tile_statistics(self, steps: Sequence[Step], x: Tensor) -> Cache:
        """What norms of ``steps`` need to know of their input; nothing where they see one position at a time."""
        return {}

    def whole_moments(self, video: Tensor) -> Tensor:
        """:meth:`moments` of a whole clip."""
        return self.moments(video, None)

    def whole_pixels(self, latents: Tensor) -> Tensor:
        """:meth:`pixels` of a whole clip."""
        return self.pixels(latents, None)

    def _latents(self, moments: Tensor, generator: Generator | None, dtype: torch.dtype) -> Tensor:
        """Final latents: the mean, or a draw."""
        mean, logvar = moments.chunk(2, dim=1)
        posterior = DiagonalGaussian(mean=mean, logvar=logvar.clamp(*LOGVAR_RANGE))
        return self._normalize(mean if generator is None else posterior.sample(generator), dtype)

    def _own(self, x: Tensor) -> Tensor:
        """``x`` in the dtype of the weights, channels last."""
        dtype = next(self.parameters()).dtype
        return x.to(dtype).contiguous(memory_format=torch.channels_last_3d)

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(values, device=device).view(-1, 1, 1, 1) for values in self.config.statistics)
        return mean, std

    def _normalize(self, latents: Tensor, dtype: torch.dtype) -> Tensor:
        mean, std = self._statistics(latents.device)
        return ((latents.float() - mean) / std).to(dtype)

    def _denormalize(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics(latents.device)
        return self._own(latents.float() * std + mean)

    def _check_video(self, video: Tensor, *, starts: bool) -> None:
        spec = self.latent_spec
        if video.ndim != 5 or video.shape[1] != 3:
            raise ValueError(f"video must be (B, 3, T, H, W), got {tuple(video.shape)}")
        frames, height, width = video.shape[2:]
        if starts:
            spec.latent_frames(frames)
        elif frames < 1 or frames % spec.temporal_stride:
            raise ValueError(
                f"a later piece of a video must have a multiple of {spec.temporal_stride} frames, got {frames}"
            )
        spec.latent_size(height, width)

    def _check_latents(self, latents: Tensor) -> None:
        channels = self.latent_spec.channels
        if latents.ndim != 5 or latents.shape[1] != channels or min(latents.shape[2:]) < 1:
            raise ValueError(
                f"latents must be (B, {channels}, t, h, w) with at least one position, got {tuple(latents.shape)}"
            )


def _check_tile_size(tile_size: int) -> None:
    if tile_size < 1:
        raise ValueError(f"tile_size must be positive, got {tile_size}")
