"""Architecture of HunyuanVideo's VAE."""

from __future__ import annotations

import math
from dataclasses import dataclass

from omnihuman_core.contracts.latents import LatentSpec


@dataclass(frozen=True, kw_only=True)
class HunyuanVideoVAEConfig:
    """Architecture of HunyuanVideo's VAE and the constant that scales its latents.

    Attributes:
        latent_channels: Channels ``C`` of the latents.
        channels: Width of each level, from pixels to latents.
        blocks: Residual blocks of the encoder per level; the decoder has one more.
        norm_groups: Groups of each group norm.
        spatial_stride: Pixels behind a latent position; a power of two.
        mid_attention: Whether the middle of encoder and decoder has attention.
        scaling_factor: Multiplies the posterior mean; the latents have no other normalisation.
    """

    latent_channels: int
    channels: tuple[int, ...]
    blocks: int
    norm_groups: int
    spatial_stride: int
    mid_attention: bool
    scaling_factor: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        for name in ("latent_channels", "blocks", "norm_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"HunyuanVideoVAEConfig.{name} must be at least 1, got {getattr(self, name)}")
        if len(self.channels) < 3 or any(width < 1 or width % self.norm_groups for width in self.channels):
            raise ValueError(
                "HunyuanVideoVAEConfig.channels must be at least 3 multiples of norm_groups "
                f"({self.norm_groups}), got {self.channels}"
            )
        steps = math.log2(self.spatial_stride) if self.spatial_stride > 0 else 0
        # The two steps in time are the last two steps between levels, and must halve the picture too.
        if steps not in (len(self.channels) - 1, len(self.channels)):
            fitting = 2 ** (len(self.channels) - 1)
            raise ValueError(
                f"HunyuanVideoVAEConfig.spatial_stride must be {fitting} or {2 * fitting} for "
                f"{len(self.channels)} levels, got {self.spatial_stride}"
            )
        if self.scaling_factor <= 0:
            raise ValueError(f"HunyuanVideoVAEConfig.scaling_factor must be positive, got {self.scaling_factor}")

    def encoder_step(self, level: int) -> tuple[bool, bool]:
        """Whether the encoder halves the picture, and time, after a level."""
        last = len(self.channels) - 1
        return 2**level < self.spatial_stride, last - 2 <= level < last

    @property
    def latent_spec(self) -> LatentSpec:
        """Time is halved twice, the picture at every step."""
        return LatentSpec(channels=self.latent_channels, temporal_stride=4, spatial_stride=self.spatial_stride)

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation that normalise each latent channel."""
        return (0.0,) * self.latent_channels, (1 / self.scaling_factor,) * self.latent_channels


def hunyuan_video() -> HunyuanVideoVAEConfig:
    """The VAE of HunyuanVideo, HunyuanVideo-I2V and HunyuanVideo-Avatar: 4x8x8, 16 channels."""
    return HunyuanVideoVAEConfig(
        latent_channels=16,
        channels=(128, 256, 512, 512),
        blocks=2,
        norm_groups=32,
        spatial_stride=8,
        mid_attention=True,
        scaling_factor=0.476986,
    )
