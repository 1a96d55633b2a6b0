"""Wan 2.1's VAE (Wan: Open and Advanced Large-Scale Video Generative Models, section 4.1).

Its norms see one position at a time and its convolutions look back only, so streaming is exact. Modules carry the names
of the public folder layout, so that its state dict is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from omnihuman_vae.adapters.base import PublicVideoVAE
from omnihuman_vae.adapters.causal import Prepare, causal_conv, upsample_conv, without_rim
from omnihuman_vae.adapters.tiles import Step, TiledDecoder, TiledEncoder
from omnihuman_vae.adapters.wan_config import WanVAEConfig, wan_2_1
from omnihuman_vae.layers import Cache

# Latent positions decoded at once; the result does not depend on it.
STEP_POSITIONS = 4096


class WanNorm(nn.Module):
    """RMSNorm over the channels of each position, ``(B, C, ...)`` to the same shape."""

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *(1,) * dims))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; a position of zeros stays zero."""
        x = x.movedim(1, -1)  # (B, ..., C)
        x = F.rms_norm(x, x.shape[-1:], self.gamma.flatten(), 1e-24)
        return x.movedim(-1, 1)  # (B, C, ...)


class WanConv(nn.Conv3d):
    """Convolution over ``(B, C, T, H, W)`` with zeros before the clip and around the picture."""

    def forward(
        self, x: Tensor, cache: Cache | None = None, prepare: Prepare | None = None, *, in_place: bool = False
    ) -> Tensor:
        """Convolve the next frames; see :func:`causal_conv`."""
        return causal_conv(self, self, x, cache, border="zeros", prepare=prepare, in_place=in_place)


class WanResidualBlock(nn.Module):
    """Norm, SiLU and convolution, twice, around a shortcut."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = WanNorm(in_channels, 3)
        self.conv1 = WanConv(in_channels, out_channels, 3)
        self.norm2 = WanNorm(out_channels, 3)
        self.conv2 = WanConv(out_channels, out_channels, 3)
        self.conv_shortcut = WanConv(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """``(B, C, T, H, W)`` to ``(B, C_out, T, H, W)``."""
        residual: Tensor = self.conv1(x, cache, lambda slab: F.silu(self.norm1(slab)))
        # In place where nothing has to be kept for gradients: at full size one activation is gigabytes.
        in_place = not torch.is_grad_enabled()
        residual = self.conv2(residual, cache, lambda slab: F.silu(self.norm2(slab)), in_place=in_place)
        shortcut: Tensor = self.conv_shortcut(without_rim(x, cache, 2))
        return residual.add_(shortcut) if in_place else residual + shortcut


class WanAttention(nn.Module):
    """Self-attention of one head inside each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = WanNorm(channels, 2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, T, H, W)`` to the same shape."""
        tokens = rearrange(self.norm(x), "b c t h w -> (b t) (h w) c")  # (B * T, L, C)
        q, k, v = F.linear(tokens, self.to_qkv.weight[:, :, 0, 0], self.to_qkv.bias).chunk(3, dim=-1)
        tokens = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        tokens = F.linear(tokens, self.proj.weight[:, :, 0, 0], self.proj.bias)
        batch, _, frames, height, _ = x.shape
        return x + rearrange(tokens, "(b t) (h w) c -> b t h w c", b=batch, t=frames, h=height).movedim(-1, 1)


class WanMidBlock(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([WanAttention(channels)])
        self.resnets = nn.ModuleList([WanResidualBlock(channels, channels), WanResidualBlock(channels, channels)])

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """``(B, C, t, h, w)`` to the same shape."""
        x = self.attentions[0](self.resnets[0](x, cache))
        x = self.resnets[1](x, cache)
        return x


class WanDownsample(nn.Module):
    """Halves the picture, and time where asked; the first frame of a clip stands alone."""

    def __init__(self, channels: int, *, temporal: bool) -> None:
        super().__init__()
        # The public layout numbers a padding layer 0.
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))
        self.time_conv = WanConv(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if temporal else None

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """``(B, C, T, H, W)`` to ``(B, C, T or (T + 1) / 2, H / 2, W / 2)``."""
        batch = x.shape[0]
        # A tile that ends inside the picture has one position more, so that nothing sees the padding there.
        x = self.resample(rearrange(x, "b c t h w -> (b t) c h w"))
        x = rearrange(x, "(b t) c h w -> b c t h w", b=batch)
        if self.time_conv is None:
            return x
        if cache is not None and self.time_conv in cache:
            later: Tensor = self.time_conv(x, cache)
            return later
        # Every later window starts on the last frame of the one before; the first one on the first frame.
        cache = {} if cache is None else cache
        first = x[:, :, :1]
        cache[self.time_conv] = first.clone()
        return first if x.shape[2] == 1 else torch.cat([first, self.time_conv(x[:, :, 1:], cache)], dim=2)


class WanUpsample(nn.Module):
    """Doubles the picture, and time where asked, and halves the width; the first frame of a clip stays one."""

    def __init__(self, channels: int, *, temporal: bool) -> None:
        super().__init__()
        # The public layout numbers the doubling 0; here it is a part of the convolution.
        self.resample = nn.Sequential(nn.Identity(), nn.Conv2d(channels, channels // 2, 3, padding=1))
        self.time_conv = WanConv(channels, 2 * channels, (3, 1, 1)) if temporal else None

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """``(B, C, t, h, w)`` to ``(B, C / 2, t or 2t or 2t - 1, 2h, 2w)``."""
        if self.time_conv is not None:
            x = self._double_time(self.time_conv, x, cache)
        conv = self.resample[1]
        assert isinstance(conv, nn.Conv2d)
        return upsample_conv(self, conv.weight[:, :, None], conv.bias, x, cache, border="zeros", temporal=False)

    @staticmethod
    def _double_time(conv: nn.Module, x: Tensor, cache: Cache | None) -> Tensor:
        starts = cache is None or conv not in cache
        first, rest = (x[:, :, :1], x[:, :, 1:]) if starts else (x[:, :, :0], x)
        if rest.shape[2] == 0:
            if cache is not None:
                # The first frame is never seen by the convolution: the second one has zeros before it too.
                cache[conv] = torch.zeros_like(first).repeat(1, 1, 2, 1, 1)
            return first
        rest = rearrange(conv(rest, cache), "b (f c) t h w -> b t f h w c", f=2)
        rest = rearrange(rest, "b t f h w c -> b (t f) h w c").movedim(-1, 1)  # (B, C, 2T, H, W)
        return torch.cat([first, rest], dim=2)


class WanUpBlock(nn.Module):
    """A level of the decoder, whose modules :meth:`TiledDecoder.steps` runs."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, upsample: WanUpsample | None) -> None:
        super().__init__()
        widths = [in_channels, *(out_channels for _ in range(blocks))]
        self.resnets = nn.ModuleList(WanResidualBlock(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.upsamplers = nn.ModuleList([] if upsample is None else [upsample])


class WanEncoder(TiledEncoder):
    """``(B, 3, T, H, W)`` to ``(B, 2C, t, h, w)``."""

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = WanConv(3, widths[0], 3)
        self.down_blocks = nn.ModuleList()
        for level, width in enumerate(widths):
            before = widths[max(level - 1, 0)]
            for block in range(config.blocks):
                self.down_blocks.append(WanResidualBlock(width if block else before, width))
            if level < len(widths) - 1:
                self.down_blocks.append(WanDownsample(width, temporal=config.temporal_downsample[level]))
        self.mid_block = WanMidBlock(widths[-1])
        self.norm_out = WanNorm(widths[-1], 3)
        self.conv_out = WanConv(widths[-1], 2 * config.latent_channels, 3)

    def levels(self) -> list[list[Step]]:
        """Steps of each level, from pixels to latents."""
        levels: list[list[Step]] = [[]]
        for block in self.down_blocks:
            if isinstance(block, WanDownsample):
                levels[-1].append(Step(block, reach=(0, 1), down=2, frames=1 if block.time_conv is None else 2))
                levels.append([])
            else:
                levels[-1].append(Step(block, reach=(2, 2)))
        return levels

    def head(self, x: Tensor, cache: Cache | None) -> Tensor:
        """Moments, from the result of the middle."""
        out: Tensor = self.conv_out(x, cache, lambda slab: F.silu(self.norm_out(slab)))
        return out


class WanDecoder(TiledDecoder):
    """``(B, C, t, h, w)`` to ``(B, 3, T, H, W)``."""

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        widths = config.widths[::-1]
        temporal = config.temporal_downsample[::-1]
        self.conv_in = WanConv(config.latent_channels, widths[0], 3)
        self.mid_block = WanMidBlock(widths[0])
        self.up_blocks = nn.ModuleList()
        before = widths[0]
        for level, width in enumerate(widths):
            last = level == len(widths) - 1
            upsample = None if last else WanUpsample(width, temporal=temporal[level])
            self.up_blocks.append(WanUpBlock(before, width, config.blocks + 1, upsample))
            before = width // 2
        self.norm_out = WanNorm(widths[-1], 3)
        self.conv_out = WanConv(widths[-1], 3, 3)

    def head(self, x: Tensor, cache: Cache | None) -> Tensor:
        """Pixels, from the result of the last level."""
        out: Tensor = self.conv_out(x, cache, lambda slab: F.silu(self.norm_out(slab)))
        return out


class WanVAE(PublicVideoVAE):
    """Implements :class:`omnihuman_core.contracts.vae.VideoVAE` for Wan 2.1's weights; streaming is exact.

    Attributes:
        config: The architecture.
    """

    config_class: ClassVar[type[WanVAEConfig]] = WanVAEConfig
    presets: ClassVar[dict[str, Callable[[], WanVAEConfig]]] = {"wan_2_1": wan_2_1}
    streaming_tolerance: float | None = 1e-5

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        self.config: WanVAEConfig = config
        channels = config.latent_channels
        self.encoder = WanEncoder(config)
        self.quant_conv = WanConv(2 * channels, 2 * channels, 1)
        self.post_quant_conv = WanConv(channels, channels, 1)
        self.decoder = WanDecoder(config)

    def moments(self, video: Tensor, cache: Cache | None) -> Tensor:
        """Means, then log-variances ``(B, 2C, t, h, w)`` of the next frames."""
        moments: Tensor = self.quant_conv(self.encoder(video, cache))
        return moments

    def pixels(self, latents: Tensor, cache: Cache | None) -> Tensor:
        """Video ``(B, 3, T, H, W)`` of the next latent frames."""
        pixels: Tensor = self.decoder(self.post_quant_conv(latents), cache)
        return pixels

    def whole_moments(self, video: Tensor) -> Tensor:
        """A few frames at a time, which is exact and bounds the memory."""
        stride = self.latent_spec.temporal_stride
        step = self._step(*self.latent_spec.latent_size(*video.shape[3:])) * stride
        sizes = [1, *(min(step, video.shape[2] - done) for done in range(1, video.shape[2], step))]
        cache: Cache = {}
        return torch.cat([self.moments(piece, cache) for piece in torch.split(video, sizes, dim=2)], dim=2)

    def whole_pixels(self, latents: Tensor) -> Tensor:
        """A few frames at a time, which is exact and bounds the memory."""
        cache: Cache = {}
        pieces = torch.split(latents, self._step(*latents.shape[3:]), dim=2)
        return torch.cat([self.pixels(piece, cache) for piece in pieces], dim=2)

    @staticmethod
    def _step(height: int, width: int) -> int:
        return max(STEP_POSITIONS // (height * width), 1)
