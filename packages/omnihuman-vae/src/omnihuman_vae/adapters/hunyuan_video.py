"""HunyuanVideo's VAE (HunyuanVideo: A Systematic Framework for Large Video Generative Models, section 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor, nn

from omnihuman_vae.adapters.base import PublicVideoVAE
from omnihuman_vae.adapters.hunyuan_config import HunyuanVideoVAEConfig, hunyuan_video
from omnihuman_vae.adapters.hunyuan_layers import (
    NORM_EPS,
    ClipNorm,
    HunyuanConv,
    HunyuanDownsample,
    HunyuanLevel,
    HunyuanMidBlock,
    HunyuanUpsample,
    NormsOnly,
)
from omnihuman_vae.adapters.tiles import Step, TiledDecoder, TiledEncoder
from omnihuman_vae.layers import Cache

STATISTICS_FRAMES = 1
"""Frames at the start of what tiles are cut from, which their norms take statistics from."""


class HunyuanVideoEncoder(TiledEncoder):
    """``(B, 3, T, H, W)`` to ``(B, 2C, t, h, w)``."""

    def __init__(self, config: HunyuanVideoVAEConfig) -> None:
        super().__init__()
        groups = config.norm_groups
        self.conv_in = HunyuanConv(3, config.channels[0], 3)
        self.down_blocks = nn.ModuleList()
        before = config.channels[0]
        for level, width in enumerate(config.channels):
            spatial, temporal = config.encoder_step(level)
            step = HunyuanDownsample(width, temporal=temporal) if spatial else None
            self.down_blocks.append(HunyuanLevel((before, *(width,) * config.blocks), groups, downsample=step))
            before = width
        self.mid_block = HunyuanMidBlock(before, groups, attention=config.mid_attention)
        self.conv_norm_out = ClipNorm(groups, before, NORM_EPS)
        self.conv_out = HunyuanConv(before, 2 * config.latent_channels, 3)

    def levels(self) -> list[list[Step]]:
        """Steps of each level, from pixels to latents."""
        return [
            [
                *(Step(block, reach=(2, 2)) for block in level.get_submodule("resnets").children()),
                *(
                    Step(block, reach=(1, 0), down=2, frames=2 if block.temporal else 1)
                    for block in level.get_submodule("downsamplers").children()
                ),
            ]
            for level in self.down_blocks
        ]

    def head(self, x: Tensor, cache: Cache | None) -> Tensor:
        """Moments, from the result of the middle."""
        out: Tensor = self.conv_out(x, cache, self.conv_norm_out.measure(x, cache, activation=True))
        return out


class HunyuanVideoDecoder(TiledDecoder):
    """``(B, C, t, h, w)`` to ``(B, 3, T, H, W)``."""

    def __init__(self, config: HunyuanVideoVAEConfig) -> None:
        super().__init__()
        groups = config.norm_groups
        before = config.channels[-1]
        self.conv_in = HunyuanConv(config.latent_channels, before, 3)
        self.mid_block = HunyuanMidBlock(before, groups, attention=config.mid_attention)
        self.up_blocks = nn.ModuleList()
        for level, width in enumerate(reversed(config.channels)):
            # Encoder and decoder count their steps from their own start.
            spatial, temporal = config.encoder_step(level)
            step = HunyuanUpsample(width, temporal=temporal) if spatial else None
            self.up_blocks.append(HunyuanLevel((before, *(width,) * (config.blocks + 1)), groups, upsample=step))
            before = width
        self.conv_norm_out = ClipNorm(groups, before, NORM_EPS)
        self.conv_out = HunyuanConv(before, 3, 3)

    def head(self, x: Tensor, cache: Cache | None) -> Tensor:
        """Pixels, from the result of the last level."""
        out: Tensor = self.conv_out(x, cache, self.conv_norm_out.measure(x, cache, activation=True))
        return out


class HunyuanVideoVAE(PublicVideoVAE):
    """Implements :class:`omnihuman_core.contracts.vae.VideoVAE` for HunyuanVideo's weights.

    Its group norms see the whole clip, later frames included. So the contract's causality holds for everything but the
    statistics of those norms, and a stream, which has the statistics of the frames so far, is close to the whole but
    not equal: ``streaming_tolerance`` is None. A clip that comes as one piece is decoded exactly. Tiles share
    statistics taken from the first frames, so that they fit each other without a seam.

    Attributes:
        config: The architecture.
    """

    config_class: ClassVar[type[HunyuanVideoVAEConfig]] = HunyuanVideoVAEConfig
    presets: ClassVar[dict[str, Callable[[], HunyuanVideoVAEConfig]]] = {"hunyuan_video": hunyuan_video}
    streaming_tolerance: float | None = None

    def __init__(self, config: HunyuanVideoVAEConfig) -> None:
        super().__init__()
        self.config: HunyuanVideoVAEConfig = config
        channels = config.latent_channels
        self.encoder = HunyuanVideoEncoder(config)
        self.quant_conv = nn.Conv3d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = nn.Conv3d(channels, channels, 1)
        self.decoder = HunyuanVideoDecoder(config)

    def moments(self, video: Tensor, cache: Cache | None) -> Tensor:
        """Means, then log-variances ``(B, 2C, t, h, w)`` of the next frames."""
        moments: Tensor = self.quant_conv(self.encoder(video, cache))
        return moments

    def pixels(self, latents: Tensor, cache: Cache | None) -> Tensor:
        """Video ``(B, 3, T, H, W)`` of the next latent frames."""
        pixels: Tensor = self.decoder(self.post_quant_conv(latents), cache)
        return pixels

    def tile_statistics(self, steps: Sequence[Step], x: Tensor) -> Cache:
        """Statistics of the first frames of the whole picture, which all tiles use for the whole clip."""
        cache = NormsOnly()
        x = x[:, :, :STATISTICS_FRAMES]
        for step in steps:
            x = step.module(x, cache)
        return cache
