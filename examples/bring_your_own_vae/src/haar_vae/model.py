"""A causal, exactly invertible, linear video VAE."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange, repeat
from torch import Generator, Tensor, nn

from omnihuman_core.contracts import LatentSpec


@dataclass(frozen=True, kw_only=True)
class HaarVAEConfig:
    """Strides, and the constants that normalise the latents.

    Attributes:
        temporal_stride: Pixel frames of a latent frame, a power of two.
        spatial_stride: Pixels of a latent position each way, a power of two.
        mean_std: Standard deviation of block means over the training set.
        detail_std: Standard deviation of all other coefficients.
    """

    temporal_stride: int
    spatial_stride: int
    mean_std: float
    detail_std: float

    def __post_init__(self) -> None:
        for name in ("temporal_stride", "spatial_stride"):
            stride = getattr(self, name)
            if stride < 1 or stride & (stride - 1):
                raise ValueError(f"HaarVAEConfig.{name} must be a power of two, got {stride}")
        for name in ("mean_std", "detail_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"HaarVAEConfig.{name} must be positive, got {getattr(self, name)}")

    @property
    def block(self) -> int:
        """Pixels of one colour behind one latent position."""
        return self.temporal_stride * self.spatial_stride**2


class HaarVAE(nn.Module):
    """Implements ``omnihuman_core.contracts.VideoVAE``.

    Each block of pixels becomes its mean and its differences, colour by colour. The first frame is repeated to fill a
    block of its own, so no latent frame sees past its own pixels.
    """

    config_class: ClassVar[type[HaarVAEConfig]] = HaarVAEConfig
    # Blocks do not touch each other: pieces decode as the whole does.
    streaming_tolerance: float | None = 1e-6
    analysis: Tensor
    synthesis: Tensor
    std: Tensor

    def __init__(self, config: HaarVAEConfig) -> None:
        super().__init__()
        self.config = config
        frames, side = _haar(config.temporal_stride), _haar(config.spatial_stride)
        analysis, synthesis = (
            torch.kron(torch.kron(frames[i], side[i]), side[i]) for i in range(2)
        )  # (block, block) each
        std = torch.full((config.block,), config.detail_std)
        std[0] = config.mean_std
        # Powers of two and small fractions of them: exact even in bf16 files.
        self.register_buffer("analysis", analysis)
        self.register_buffer("synthesis", synthesis)
        self.register_buffer("std", std)

    @property
    def latent_spec(self) -> LatentSpec:
        config = self.config
        return LatentSpec(
            channels=3 * config.block, temporal_stride=config.temporal_stride, spatial_stride=config.spatial_stride
        )

    def encode(self, video: Tensor, *, generator: Generator | None = None) -> Tensor:
        """``(B, 3, T, H, W)`` to ``(B, C, t, h, w)``; the posterior is a point, so a generator changes nothing."""
        if video.ndim != 5 or video.shape[1] != 3:
            raise ValueError(f"video must be (B, 3, T, H, W), got {tuple(video.shape)}")
        self.latent_spec.latent_shape(*video.shape[2:])
        stride, side = self.config.temporal_stride, self.config.spatial_stride
        video = torch.cat([repeat(video[:, :, :1], "B C 1 H W -> B C k H W", k=stride - 1), video], dim=2)
        blocks = rearrange(video, "B C (t a) (h b) (w c) -> B t h w C (a b c)", a=stride, b=side, c=side)
        return rearrange(blocks @ self.analysis.T / self.std, "B t h w C d -> B (d C) t h w")

    def decode(self, latents: Tensor) -> Tensor:
        """``(B, C, t, h, w)`` to ``(B, 3, T, H, W)``."""
        return self._blocks(latents)[:, :, self.config.temporal_stride - 1 :]

    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Pieces of ``(B, C, t_i, h, w)`` to their frames."""
        skip = self.config.temporal_stride - 1
        for chunk in chunks:
            yield self._blocks(chunk)[:, :, skip:]
            skip = 0

    def _blocks(self, latents: Tensor) -> Tensor:
        if latents.ndim != 5 or latents.shape[1] != 3 * self.config.block:
            raise ValueError(f"latents must be (B, {3 * self.config.block}, t, h, w), got {tuple(latents.shape)}")
        stride, side = self.config.temporal_stride, self.config.spatial_stride
        coefficients = rearrange(latents, "B (d C) t h w -> B t h w C d", C=3)
        blocks = (coefficients * self.std) @ self.synthesis.T
        return rearrange(blocks, "B t h w C (a b c) -> B C (t a) (h b) (w c)", a=stride, b=side, c=side)


def _haar(size: int) -> tuple[Tensor, Tensor]:
    """Analysis and synthesis of ``size`` samples, each ``(size, size)``: mean first, then ever finer differences."""
    if size == 1:
        return torch.ones(1, 1), torch.ones(1, 1)
    analysis, synthesis = _haar(size // 2)
    pairs = torch.eye(size // 2)
    total, difference = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, -1.0]])
    return (
        torch.cat([analysis @ torch.kron(pairs, total / 2), torch.kron(pairs, difference / 2)]),
        torch.cat([torch.kron(pairs, total).T @ synthesis, torch.kron(pairs, difference).T], dim=1),
    )
