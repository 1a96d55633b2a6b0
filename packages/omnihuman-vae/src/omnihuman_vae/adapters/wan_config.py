"""Architecture of Wan 2.1's VAE."""

from __future__ import annotations

from dataclasses import dataclass

from omnihuman_core.contracts.latents import LatentSpec


@dataclass(frozen=True, kw_only=True)
class WanVAEConfig:
    """Architecture of Wan 2.1's VAE and the constants that normalise its latents.

    Attributes:
        latent_channels: Channels ``C`` of the latents.
        base_channels: Width of the level of the pixels; the others are multiples of it.
        channel_multipliers: Multiple of ``base_channels`` per level, from pixels to latents.
        blocks: Residual blocks of the encoder per level; the decoder has one more.
        temporal_downsample: For each step between two levels, whether it halves time; each halves height and width.
        latents_mean: Mean of each latent channel.
        latents_std: Standard deviation of each latent channel.
    """

    latent_channels: int
    base_channels: int
    channel_multipliers: tuple[int, ...]
    blocks: int
    temporal_downsample: tuple[bool, ...]
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("channel_multipliers", "temporal_downsample", "latents_mean", "latents_std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("latent_channels", "base_channels", "blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"WanVAEConfig.{name} must be at least 1, got {getattr(self, name)}")
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise ValueError(f"WanVAEConfig.channel_multipliers must be positive, got {self.channel_multipliers}")
        steps = len(self.channel_multipliers) - 1
        if len(self.temporal_downsample) != steps:
            raise ValueError(
                f"WanVAEConfig.temporal_downsample must have {steps} entries, one per step between levels, "
                f"got {self.temporal_downsample}"
            )
        for name in ("latents_mean", "latents_std"):
            if len(getattr(self, name)) != self.latent_channels:
                raise ValueError(
                    f"WanVAEConfig.{name} must have one value per latent channel ({self.latent_channels}), "
                    f"got {len(getattr(self, name))}"
                )
        if not all(value > 0 for value in self.latents_std):
            raise ValueError(f"WanVAEConfig.latents_std must be positive, got {self.latents_std}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, from pixels to latents."""
        return tuple(self.base_channels * multiplier for multiplier in self.channel_multipliers)

    @property
    def latent_spec(self) -> LatentSpec:
        """Sizes that follow from the downsampling steps."""
        return LatentSpec(
            channels=self.latent_channels,
            temporal_stride=2 ** sum(self.temporal_downsample),
            spatial_stride=2 ** len(self.temporal_downsample),
        )

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation that normalise each latent channel."""
        return self.latents_mean, self.latents_std


# fmt: off
WAN_2_1_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)
WAN_2_1_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)
# fmt: on


def wan_2_1() -> WanVAEConfig:
    """The VAE of every Wan 2.1 model and of the 14B models of Wan 2.2: 4x8x8, 16 channels."""
    return WanVAEConfig(
        latent_channels=16,
        base_channels=96,
        channel_multipliers=(1, 2, 4, 4),
        blocks=2,
        temporal_downsample=(False, True, True),
        latents_mean=WAN_2_1_MEAN,
        latents_std=WAN_2_1_STD,
    )
