"""Trainable pose guider: skeleton maps to features at latent resolution (paper section 3.2).

The paper: a pose guider encodes the skeleton maps; its features are concatenated with those of adjacent frames and
stacked on the channel axis with the noisy latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from einops import rearrange
from torch import Tensor, nn

from omnihuman_core.contracts.conditioning import PoseCondition


@dataclass(frozen=True, kw_only=True)
class PoseGuiderConfig:
    """Architecture of a :class:`PoseGuider`.

    Attributes:
        in_channels: Channels of the maps.
        hidden_dim: Width of the features of one pixel frame.
        out_channels: Pose channels ``C_pose``.
        margin: Frames to either side of a latent frame's own that it also sees.
        temporal_stride: Pixel frames behind each latent frame but the first.
        spatial_stride: Pixels behind one latent position along each side.
    """

    in_channels: int
    hidden_dim: int
    out_channels: int
    margin: int
    temporal_stride: int
    spatial_stride: int

    def __post_init__(self) -> None:
        for name in ("in_channels", "hidden_dim", "out_channels", "temporal_stride", "spatial_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"PoseGuiderConfig.{name} must be at least 1, got {getattr(self, name)}")
        if self.margin < 0:
            raise ValueError(f"PoseGuiderConfig.margin must not be negative, got {self.margin}")

    @classmethod
    def tiny(cls, *, temporal_stride: int = 4, spatial_stride: int = 8) -> Self:
        """16 pose channels; the strides are those of the VAE."""
        return cls(
            in_channels=3,
            hidden_dim=96,
            out_channels=16,
            margin=1,
            temporal_stride=temporal_stride,
            spatial_stride=spatial_stride,
        )


class PoseGuider(nn.Module):
    """Space-to-depth and an MLP on each frame, adjacent frames concatenated, then a spatial convolution.

    Example:
        >>> guider = PoseGuider(PoseGuiderConfig.tiny())
        >>> guider.encode(torch.zeros(1, 3, 9, 64, 48)).features.shape
        torch.Size([1, 16, 3, 8, 6])
    """

    config_class = PoseGuiderConfig
    presets: ClassVar[dict[str, Callable[[], PoseGuiderConfig]]] = {"tiny": PoseGuiderConfig.tiny}

    def __init__(self, config: PoseGuiderConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden_dim
        self.embed = nn.Sequential(
            nn.Linear(config.in_channels * config.spatial_stride**2, hidden), nn.GELU(), nn.Linear(hidden, hidden)
        )
        self.frames = nn.Linear((config.temporal_stride + 2 * config.margin) * hidden, 2 * hidden)
        self.norm = nn.LayerNorm(2 * hidden)
        self.conv = nn.Conv2d(2 * hidden, hidden, 3, padding=1)
        self.out = nn.Conv2d(hidden, config.out_channels, 1)
        # The backbone's pose weights start at zero: features near unit scale let them grow as fast as the others.
        for layer in (self.conv, self.out):
            nn.init.xavier_normal_(layer.weight)
        self.null_feature = nn.Parameter(torch.randn(config.out_channels) * 0.5)

    def encode(self, features: Tensor) -> PoseCondition:
        """Pose features at latent resolution.

        Args:
            features: Skeleton maps ``(B, 3, T, H, W)`` in [0, 1], ``T = 1 + k * temporal_stride``.

        Returns:
            ``(B, C_pose, t, h, w)``.

        Raises:
            ValueError: channels, frames or sides do not fit the strides.
        """
        config = self.config
        stride, size, margin = config.temporal_stride, config.spatial_stride, config.margin
        batch = features.shape[0]
        if features.ndim != 5 or features.shape[1] != config.in_channels:
            raise ValueError(f"pose maps must be (B, {config.in_channels}, T, H, W), got {tuple(features.shape)}")
        if (features.shape[2] - 1) % stride or features.shape[3] % size or features.shape[4] % size:
            raise ValueError(
                f"pose maps need 1 + a multiple of {stride} frames and sides that {size} divides, "
                f"got (T, H, W) = {tuple(features.shape[2:])}"
            )
        x = rearrange(features, "b c t (h p) (w q) -> b t h w (p q c)", p=size, q=size)  # (B, T, h, w, D)
        x = self.embed(x)
        # The first frame fills its own group and the margin before it, the last one the margin after it.
        x = torch.cat(
            [x[:, :1].expand(-1, stride - 1 + margin, *x.shape[2:]), x, x[:, -1:].expand(-1, margin, *x.shape[2:])], 1
        )
        x = x.unfold(1, stride + 2 * margin, stride)  # (B, t, h, w, D, stride + 2 margin)
        x = nn.functional.gelu(self.norm(self.frames(rearrange(x, "b t h w d s -> b t h w (s d)"))))
        x = rearrange(x, "b t h w d -> (b t) d h w")  # (B * t, 2 D, h, w)
        x = self.out(nn.functional.gelu(self.conv(x)))
        return PoseCondition(features=rearrange(x, "(b t) c h w -> b c t h w", b=batch))  # (B, C_pose, t, h, w)

    def null(self, like: PoseCondition) -> PoseCondition:
        """The learned "no pose" features, in the shape of ``like``."""
        return PoseCondition(features=self.null_feature.to(like.features).view(1, -1, 1, 1, 1).expand_as(like.features))

    def forward(self, features: Tensor) -> PoseCondition:
        """Same as :meth:`encode`."""
        return self.encode(features)
