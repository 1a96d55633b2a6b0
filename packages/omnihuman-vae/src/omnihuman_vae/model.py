"""The causal video VAE (paper section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from omnihuman_core.contracts.latents import LatentSpec
from omnihuman_vae.config import CausalVAEConfig
from omnihuman_vae.decoder import Decoder
from omnihuman_vae.distribution import DiagonalGaussian
from omnihuman_vae.encoder import Encoder
from omnihuman_vae.layers import Cache
from omnihuman_vae.presets import base, tiny

# exp(0.5 * logvar) stays finite in bf16 and fp16 inside these bounds.
LOGVAR_RANGE = (-20.0, 10.0)


class CausalVideoVAE(nn.Module):
    """Implements :class:`omnihuman_core.contracts.vae.VideoVAE`.

    Attributes:
        config: The architecture.
    """

    config_class: ClassVar[type[CausalVAEConfig]] = CausalVAEConfig
    presets: ClassVar[dict[str, Callable[[], CausalVAEConfig]]] = {"tiny": tiny, "base": base}
    streaming_tolerance: float | None = 1e-5
    latents_mean: Tensor
    latents_std: Tensor

    def __init__(self, config: CausalVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.register_buffer("latents_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latents_std", torch.ones(config.latent_channels))

    @property
    def latent_spec(self) -> LatentSpec:
        """Answers every question about sizes."""
        return self.config.latent_spec

    def set_latent_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Fix the constants that normalise the latents, measured on unnormalised posterior means.

        Args:
            mean: Mean of each channel, ``(C,)``.
            std: Standard deviation of each channel, ``(C,)``, positive.

        Raises:
            ValueError: a shape is not ``(C,)``, or a deviation is not positive and finite.
        """
        shape = (self.config.latent_channels,)
        for name, value in (("mean", mean), ("std", std)):
            if tuple(value.shape) != shape:
                raise ValueError(f"{name} must have the shape {shape}, one value per channel, got {tuple(value.shape)}")
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name} must be finite")
        if bool((std <= 0).any()):
            raise ValueError("std must be positive for every channel; a constant channel carries nothing")
        self.latents_mean.copy_(mean)
        self.latents_std.copy_(std)

    def posterior(self, video: Tensor) -> DiagonalGaussian:
        """Posterior of the latents *before* their normalisation, the one that the KL term of training acts on.

        Args:
            video: ``(B, 3, T, H, W)`` in [-1, 1].

        Raises:
            ValueError: a size does not fit ``latent_spec``.
        """
        self._check_video(video, starts=True)
        return self._gaussian(video, None, starts=True)

    def reconstruct(self, posterior_sample: Tensor) -> Tensor:
        """Decode a draw of :meth:`posterior`, ``(B, C, t, h, w)``, to ``(B, 3, T, H, W)``."""
        pixels: Tensor = self.decoder(posterior_sample.to(self._dtype))
        return pixels

    def encode(self, video: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Encode ``(B, 3, T, H, W)`` in [-1, 1] to final latents ``(B, C, t, h, w)``; see the contract."""
        posterior = self.posterior(video)
        latents = posterior.mean if generator is None else posterior.sample(generator)
        return self._normalize(latents, video.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode final latents ``(B, C, t, h, w)`` to video ``(B, 3, T, H, W)``; see the contract."""
        self._check_latents(latents)
        return self.reconstruct(self._denormalize(latents)).to(latents.dtype)

    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Encode consecutive pieces of one clip at constant memory.

        Args:
            chunks: ``(B, 3, T_i, H, W)``; the first has ``1 + k * temporal_stride`` frames, the others a multiple of
                ``temporal_stride``.

        Yields:
            Final latents of each piece, ``(B, C, t_i, h, w)``; together they are the posterior mean of the whole clip.

        Raises:
            ValueError: a size does not fit.
        """
        cache: Cache = {}
        starts = True
        for chunk in chunks:
            self._check_video(chunk, starts=starts)
            yield self._normalize(self._gaussian(chunk, cache, starts=starts).mean, chunk.dtype)
            starts = False

    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Decode consecutive pieces of one clip, ``(B, C, t_i, h, w)`` each, at constant memory; see the contract."""
        cache: Cache = {}
        starts = True
        for chunk in chunks:
            self._check_latents(chunk)
            latents = self._denormalize(chunk).to(self._dtype)
            yield self.decoder(latents, cache, starts=starts).to(chunk.dtype)
            starts = False

    @property
    def _dtype(self) -> torch.dtype:
        return self.encoder.head.conv.weight.dtype

    def _gaussian(self, video: Tensor, cache: Cache | None, *, starts: bool) -> DiagonalGaussian:
        mean, logvar = self.encoder(video.to(self._dtype), cache, starts=starts).chunk(2, dim=1)
        return DiagonalGaussian(mean=mean, logvar=logvar.clamp(*LOGVAR_RANGE))

    def _normalize(self, latents: Tensor, dtype: torch.dtype) -> Tensor:
        mean, std = self.latents_mean.view(-1, 1, 1, 1), self.latents_std.view(-1, 1, 1, 1)
        return ((latents.float() - mean.float()) / std.float()).to(dtype)

    def _denormalize(self, latents: Tensor) -> Tensor:
        mean, std = self.latents_mean.view(-1, 1, 1, 1), self.latents_std.view(-1, 1, 1, 1)
        return (latents.float() * std.float() + mean.float()).to(latents.dtype)

    def _check_video(self, video: Tensor, *, starts: bool) -> None:
        spec = self.latent_spec
        if video.ndim != 5 or video.shape[1] != self.config.in_channels:
            raise ValueError(f"video must be (B, {self.config.in_channels}, T, H, W), got {tuple(video.shape)}")
        frames, height, width = video.shape[2:]
        if starts:
            spec.latent_frames(frames)
        elif frames < 1 or frames % spec.temporal_stride:
            raise ValueError(
                f"a later piece of a video must have a multiple of {spec.temporal_stride} frames, got {frames}"
            )
        spec.latent_size(height, width)

    def _check_latents(self, latents: Tensor) -> None:
        if latents.ndim != 5 or latents.shape[1] != self.config.latent_channels or min(latents.shape[2:]) < 1:
            raise ValueError(
                f"latents must be (B, {self.config.latent_channels}, t, h, w) with at least one position, "
                f"got {tuple(latents.shape)}"
            )
