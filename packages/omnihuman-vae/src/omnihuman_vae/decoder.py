"""Latents to pixels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from omnihuman_vae.config import CausalVAEConfig
from omnihuman_vae.layers import Cache, CausalConv3d, PositionRMSNorm, ResidualBlock, Upsample, unfold_positions
from omnihuman_vae.tubelet import cosine_basis


class Decoder(nn.Module):
    """Causal decoder, ``(B, C, t, h, w)`` to ``(B, 3, T, H, W)``."""

    def __init__(self, config: CausalVAEConfig) -> None:
        super().__init__()
        spec, channels = config.latent_spec, config.channels
        frames, pixels, _ = config.patch_size
        self.patch_size = config.patch_size
        self.tubelet = (spec.temporal_stride, spec.spatial_stride, spec.spatial_stride)
        self.embed = CausalConv3d(config.latent_channels, channels[-1], kernel=(1, 3, 3))
        self.stages = nn.ModuleList()
        for level in reversed(range(len(channels))):
            self.stages.extend(ResidualBlock(channels[level], config) for _ in range(config.decoder_blocks[level]))
            if level > 0:
                self.stages.append(
                    Upsample(
                        channels[level],
                        channels[level - 1],
                        spatial=config.spatial_downsample[level - 1],
                        temporal=config.temporal_downsample[level - 1],
                    )
                )
        self.norm = PositionRMSNorm(channels[0], eps=config.norm_eps)
        self.head = CausalConv3d(channels[0], config.in_channels * frames * pixels**2, kernel=(1, 3, 3))
        self.skip: CausalConv3d | None = None
        if config.tubelet_skip:
            tubelet_channels = config.in_channels * spec.temporal_stride * spec.spatial_stride**2
            self.skip = CausalConv3d(config.latent_channels, tubelet_channels, kernel=(1, 1, 1))
            vectors, sizes = cosine_basis(self.tubelet, config.in_channels, config.latent_channels)
            self.skip.set_matrix((vectors * sizes[:, None]).T)
            # The linear path carries the signal until the head has learnt something to add.
            nn.init.zeros_(self.head.conv.weight)
            nn.init.zeros_(self.head.conv.bias)  # type: ignore[arg-type]

    def forward(self, latents: Tensor, cache: Cache | None = None, *, starts: bool = True) -> Tensor:
        """Pixels of the next latent frames; ``starts`` says that they open a clip."""
        x = self.embed(latents, cache)
        for stage in self.stages:
            x = stage(x, cache)
        pixels = unfold_positions(self.head(F.silu(self.norm(x)), cache), self.patch_size, starts=starts)
        if self.skip is not None:
            pixels = pixels + unfold_positions(self.skip(latents, cache), self.tubelet, starts=starts)
        return pixels
