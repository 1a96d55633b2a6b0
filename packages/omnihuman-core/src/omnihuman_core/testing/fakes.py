"""A tiny video VAE and a tiny backbone with known answers, which need the contracts alone.

They stand in for trained components wherever a test is about something else: the VAE is a fixed linear transform, and
the backbone's velocity is the exact one for Gaussian data whose mean the conditions set, so that a sampler's result is
known in closed form. Encoders are in :mod:`omnihuman_core.testing.fake_encoders`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange, repeat
from torch import Generator, Tensor, nn

from omnihuman_core.contracts.backbone import CONDITIONS, BackboneSpec
from omnihuman_core.contracts.conditioning import Conditioning
from omnihuman_core.contracts.latents import LatentSpec
from omnihuman_core.contracts.ops import Ops


@dataclass(frozen=True, kw_only=True)
class FakeVAEConfig:
    """Configuration of :class:`FakeVAE`.

    Attributes:
        temporal_stride: Pixel frames of a latent frame.
        spatial_stride: Pixels of a latent position, each way.
        channels: Latent channels, at most ``3 * temporal_stride * spatial_stride ** 2``; with all of them the VAE is
            exactly invertible, with fewer it is a low-pass filter.
        posterior_std: Standard deviation of a draw round its mean.
    """

    temporal_stride: int = 2
    spatial_stride: int = 2
    channels: int = 24
    posterior_std: float = 0.01

    def __post_init__(self) -> None:
        most = 3 * self.temporal_stride * self.spatial_stride**2
        if not 1 <= self.channels <= most:
            raise ValueError(f"FakeVAEConfig.channels must be in [1, {most}], got {self.channels}")


class FakeVAE(nn.Module):
    """Cosine transform of each block of pixels, lowest frequencies first; implements ``VideoVAE``.

    The first frame fills a block of its own by repetition. The weight is the transform, so that the module has
    something to save and to train; latent channel 0 is the mean brightness of the block.
    """

    config_class: ClassVar[type[FakeVAEConfig]] = FakeVAEConfig
    streaming_tolerance: float | None = 1e-5

    def __init__(self, config: FakeVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.basis = nn.Parameter(_cosine_basis(config)[: config.channels])  # (C, block)

    @property
    def latent_spec(self) -> LatentSpec:
        """Answers every question about sizes."""
        config = self.config
        return LatentSpec(
            channels=config.channels, temporal_stride=config.temporal_stride, spatial_stride=config.spatial_stride
        )

    def encode(self, video: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Encode ``(B, 3, T, H, W)`` to ``(B, C, t, h, w)``; see the contract."""
        if video.ndim != 5 or video.shape[1] != 3:
            raise ValueError(f"video must be (B, 3, T, H, W), got {tuple(video.shape)}")
        self.latent_spec.latent_shape(*video.shape[2:])
        stride, pixels = self.config.temporal_stride, self.config.spatial_stride
        padded = torch.cat([repeat(video[:, :, :1], "B C 1 H W -> B C k H W", k=stride - 1), video], dim=2)
        blocks = rearrange(padded, "B C (t a) (h b) (w c) -> B t h w (C a b c)", a=stride, b=pixels, c=pixels)
        latents = rearrange(blocks @ self.basis.T, "B t h w C -> B C t h w") / self._gain
        if generator is not None:
            noise = torch.randn(latents.shape, generator=generator, dtype=latents.dtype, device=latents.device)
            latents = latents + self.config.posterior_std * noise
        return latents  # (B, C, t, h, w)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode ``(B, C, t, h, w)`` to ``(B, 3, T, H, W)``; see the contract."""
        return self._decode(latents)[:, :, self.config.temporal_stride - 1 :]

    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Decode consecutive pieces of one clip; see the contract."""
        for index, chunk in enumerate(chunks):
            yield self._decode(chunk)[:, :, self.config.temporal_stride - 1 if index == 0 else 0 :]

    @property
    def _gain(self) -> float:
        # Brings block means, which carry most of a picture, to the range of pixels.
        return math.sqrt(self.config.temporal_stride) * self.config.spatial_stride

    def _decode(self, latents: Tensor) -> Tensor:
        if latents.ndim != 5 or latents.shape[1] != self.config.channels:
            raise ValueError(f"latents must be (B, {self.config.channels}, t, h, w), got {tuple(latents.shape)}")
        stride, pixels = self.config.temporal_stride, self.config.spatial_stride
        blocks = rearrange(latents, "B C t h w -> B t h w C") @ self.basis * self._gain
        return rearrange(blocks, "B t h w (C a b c) -> B C (t a) (h b) (w c)", C=3, a=stride, b=pixels, c=pixels)


@dataclass(frozen=True, kw_only=True)
class FakeBackboneConfig:
    """Configuration of :class:`FakeBackbone`: its ``BackboneSpec``, and the spread of the data it knows.

    Attributes:
        latent_channels: Channels ``C`` of the latents.
        conditions: Names of the conditions it accepts.
        spatial_multiple: Latent sides must be multiples of this.
        temporal_multiple: Latent frame counts must be multiples of this.
        text_dim: Width of text tokens, or None.
        pooled_dim: Width of the pooled text vector, or None.
        audio_dim: Width of audio tokens, or None.
        pose_channels: Channels of pose features, or None.
        std: Standard deviation of the data round its mean, positive.
    """

    latent_channels: int = 24
    conditions: tuple[str, ...] = CONDITIONS
    spatial_multiple: int = 1
    temporal_multiple: int = 1
    text_dim: int | None = 8
    pooled_dim: int | None = None
    audio_dim: int | None = 8
    pose_channels: int | None = 4
    std: float = 0.1

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"FakeBackboneConfig.std must be positive, got {self.std}")


class FakeBackbone(nn.Module):
    """The exact velocity for data ``N(mean(conditioning), std^2)``; implements ``Backbone``.

    The mean is a weighted sum, one weight a condition: tokens of text averaged; tokens of audio averaged per frame;
    channels of pose averaged per position; the reference latents; the last motion frame.
    """

    config_class: ClassVar[type[FakeBackboneConfig]] = FakeBackboneConfig

    def __init__(self, config: FakeBackboneConfig, ops: Ops | None = None) -> None:
        super().__init__()
        self.config = config
        # A transform of five numbers has no use for fast ops, but every backbone is given some.
        self.ops = ops
        self.weights = nn.Parameter(torch.ones(len(CONDITIONS)))

    @property
    def spec(self) -> BackboneSpec:
        """What this backbone needs."""
        config = self.config
        return BackboneSpec(
            latent_channels=config.latent_channels,
            spatial_multiple=config.spatial_multiple,
            temporal_multiple=config.temporal_multiple,
            conditions=frozenset(config.conditions),
            text_dim=config.text_dim,
            pooled_dim=config.pooled_dim,
            audio_dim=config.audio_dim,
            pose_channels=config.pose_channels,
        )

    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Velocity ``E[noise - x0 | latents]``, ``(B, C, t, h, w)``.

        With ``x = (1 - sigma) x0 + sigma noise`` and Gaussian data, both expectations are linear in ``x``.
        """
        self.spec.check(latents, conditioning)
        level = sigma.to(latents.dtype).view(-1, 1, 1, 1, 1)
        mean = self.mean(latents, conditioning)
        variance = (1 - level) ** 2 * self.config.std**2 + level**2
        residual = (latents - (1 - level) * mean) / variance
        return (level - (1 - level) * self.config.std**2) * residual - mean

    def solution(self, noise: Tensor, conditioning: Conditioning) -> Tensor:
        """Where the exact flow takes ``noise`` from sigma 1 to sigma 0: ``mean + std * noise``."""
        return self.mean(noise, conditioning) + self.config.std * noise

    def mean(self, latents: Tensor, conditioning: Conditioning) -> Tensor:
        """Mean of the data under these conditions, in the shape of ``latents``."""
        frames = latents.shape[2]
        text, audio, pose, reference, motion = self.weights.to(latents.dtype)
        total = torch.zeros_like(latents)
        if conditioning.text is not None:
            mask = conditioning.text.mask[..., None]
            tokens = (conditioning.text.tokens.mean(-1, keepdim=True) * mask).sum(1) / mask.sum(1).clamp_min(1)
            total = total + text * tokens.view(-1, 1, 1, 1, 1)
            if conditioning.text.pooled is not None:
                total = total + text * conditioning.text.pooled.mean(-1).view(-1, 1, 1, 1, 1)
        if conditioning.audio is not None:
            means = conditioning.audio.tokens.mean((-2, -1))[:, -frames:]
            total = total + audio * rearrange(means, "B t -> B 1 t 1 1")
        if conditioning.pose is not None:
            total = total + pose * conditioning.pose.features.mean(1, keepdim=True)[:, :, -frames:]
        if conditioning.reference is not None:
            total = total + reference * conditioning.reference.latents.mean(2, keepdim=True)
        if conditioning.motion is not None:
            total = total + motion * conditioning.motion.latents[:, :, -1:]
        return total


def _cosine_basis(config: FakeVAEConfig) -> Tensor:
    """Orthonormal rows over a block of ``(3, frames, pixels, pixels)``, lowest frequency first."""
    sizes = (3, config.temporal_stride, config.spatial_stride, config.spatial_stride)
    basis, frequency = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1)
    for size in sizes:
        k, n = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
        rows = torch.cos(math.pi * k * (2 * n + 1) / (2 * size)) * math.sqrt(2 / size)
        rows[0] /= math.sqrt(2)
        basis = torch.kron(basis, rows)
        # Colour is kept before detail.
        cost = torch.arange(size) * (0.1 if size == 3 and frequency.numel() == 1 else 1.0)
        frequency = (frequency[:, None] + cost).flatten()
    return basis[frequency.argsort(stable=True)].float()
