"""Pixels to the moments of the posterior."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnihuman_vae.config import CausalVAEConfig
from omnihuman_vae.layers import Cache, CausalConv3d, Downsample, PositionRMSNorm, ResidualBlock, fold_positions
from omnihuman_vae.tubelet import cosine_basis


class Encoder(nn.Module):
    """Causal encoder, ``(B, 3, T, H, W)`` to ``(B, 2C, t, h, w)``: means, then log-variances."""

    def __init__(self, config: CausalVAEConfig) -> None:
        super().__init__()
        spec, channels = config.latent_spec, config.channels
        frames, pixels, _ = config.patch_size
        self.patch_size = config.patch_size
        self.tubelet = (spec.temporal_stride, spec.spatial_stride, spec.spatial_stride)
        patch_channels = config.in_channels * frames * pixels**2
        # Without a patch the first layer has to look at a neighbourhood.
        kernel = (1, 1, 1) if pixels > 1 else (config.temporal_kernel, 3, 3)
        self.embed = CausalConv3d(patch_channels, channels[0], kernel=kernel)
        self.stages = nn.ModuleList()
        for level, width in enumerate(channels):
            if level > 0:
                self.stages.append(
                    Downsample(
                        channels[level - 1],
                        width,
                        spatial=config.spatial_downsample[level - 1],
                        temporal=config.temporal_downsample[level - 1],
                    )
                )
            self.stages.extend(ResidualBlock(width, config) for _ in range(config.encoder_blocks[level]))
        self.norm = PositionRMSNorm(channels[-1], eps=config.norm_eps)
        self.head = CausalConv3d(channels[-1], 2 * config.latent_channels, kernel=(1, 1, 1))
        # Starts with a fixed small variance everywhere.
        nn.init.zeros_(self.head.conv.weight[config.latent_channels :])
        nn.init.constant_(self.head.conv.bias[config.latent_channels :], config.initial_logvar)  # type: ignore[index]
        self.skip: CausalConv3d | None = None
        if config.tubelet_skip:
            tubelet_channels = config.in_channels * spec.temporal_stride * spec.spatial_stride**2
            self.skip = CausalConv3d(tubelet_channels, config.latent_channels, kernel=(1, 1, 1))
            vectors, sizes = cosine_basis(self.tubelet, config.in_channels, config.latent_channels)
            # Latents of about unit size, whose first estimate is this linear one.
            self.skip.set_matrix(vectors / sizes[:, None])
            with torch.no_grad():
                self.head.conv.weight[: config.latent_channels] *= 0.1

    def forward(self, video: Tensor, cache: Cache | None = None, *, starts: bool = True) -> Tensor:
        """Moments of the next frames; ``starts`` says that they open a clip."""
        x = self.embed(fold_positions(video, self.patch_size, starts=starts), cache)
        for stage in self.stages:
            x = stage(x, cache)
        moments: Tensor = self.head(F.silu(self.norm(x)), cache)
        if self.skip is not None:
            linear = self.skip(fold_positions(video, self.tubelet, starts=starts), cache)
            moments = moments + F.pad(linear, (0, 0, 0, 0, 0, 0, 0, linear.shape[1]))
        return moments
