"""Architecture of a causal video VAE (paper section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from omnihuman_core.contracts.latents import LatentSpec


@dataclass(frozen=True, kw_only=True)
class CausalVAEConfig:
    """Everything that fixes the shape of the weights.

    Levels are ordered from pixels to latents; the decoder walks them backwards.

    Attributes:
        in_channels: Colour channels of the video.
        latent_channels: Channels ``C`` of the latents.
        patch_size: ``(frames, pixels, pixels)`` folded into channels before the first level.
        channels: Width of each level.
        encoder_blocks: Residual blocks of the encoder per level.
        decoder_blocks: Residual blocks of the decoder per level.
        spatial_downsample: For each step between two levels, whether it halves height and width.
        temporal_downsample: For each step between two levels, whether it halves time.
        temporal_kernel: Frames that a temporal convolution sees, its own included.
        convolution: ``factored`` is a (1, 3, 3) and a (temporal_kernel, 1, 1) convolution per residual block; ``full``
            is two convolutions of (temporal_kernel, 3, 3).
        tubelet_skip: Add a linear path between the pixels behind a latent position and its latents, both ways.
        norm_eps: Epsilon of every RMSNorm.
        initial_logvar: Bias of the posterior's log-variance before training.
    """

    in_channels: int
    latent_channels: int
    patch_size: tuple[int, int, int]
    channels: tuple[int, ...]
    encoder_blocks: tuple[int, ...]
    decoder_blocks: tuple[int, ...]
    spatial_downsample: tuple[bool, ...]
    temporal_downsample: tuple[bool, ...]
    temporal_kernel: int
    convolution: Literal["factored", "full"]
    tubelet_skip: bool
    norm_eps: float
    initial_logvar: float

    def __post_init__(self) -> None:
        # Configs read from TOML carry lists.
        for name in ("patch_size", "channels", "encoder_blocks", "decoder_blocks", "spatial_downsample"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "temporal_downsample", tuple(self.temporal_downsample))
        levels = len(self.channels)
        if levels < 1:
            raise ValueError("CausalVAEConfig.channels must name at least one level")
        for name, expected in (
            ("patch_size", 3),
            ("encoder_blocks", levels),
            ("decoder_blocks", levels),
            ("spatial_downsample", levels - 1),
            ("temporal_downsample", levels - 1),
        ):
            if len(getattr(self, name)) != expected:
                got = getattr(self, name)
                raise ValueError(f"CausalVAEConfig.{name} must have {expected} entries for {levels} levels, got {got}")
        for name in ("in_channels", "latent_channels", "temporal_kernel"):
            if getattr(self, name) < 1:
                raise ValueError(f"CausalVAEConfig.{name} must be at least 1, got {getattr(self, name)}")
        if min(self.patch_size) < 1 or self.patch_size[1] != self.patch_size[2]:
            raise ValueError(
                f"CausalVAEConfig.patch_size must be (frames, p, p) of positive sizes, got {self.patch_size}"
            )
        for name, least in (("channels", 1), ("encoder_blocks", 0), ("decoder_blocks", 0)):
            if min(getattr(self, name)) < least:
                raise ValueError(f"CausalVAEConfig.{name} must be at least {least} each, got {getattr(self, name)}")
        if self.convolution not in ("factored", "full"):
            raise ValueError(f"CausalVAEConfig.convolution must be 'factored' or 'full', got {self.convolution!r}")
        if self.norm_eps <= 0:
            raise ValueError(f"CausalVAEConfig.norm_eps must be positive, got {self.norm_eps}")

    @property
    def latent_spec(self) -> LatentSpec:
        """Sizes that follow from the patch and the downsampling steps."""
        return LatentSpec(
            channels=self.latent_channels,
            temporal_stride=self.patch_size[0] * 2 ** sum(self.temporal_downsample),
            spatial_stride=self.patch_size[1] * 2 ** sum(self.spatial_downsample),
        )
