"""Layers of HunyuanVideo's VAE: group norm over time and space, borders repeated, attention that looks back by frames.

Modules carry the names of the public folder layout. What is exact in a stream and what is not:

* convolutions carry their last frames: exact;
* a group norm of a clip also sees later frames. In a stream it uses the statistics of all frames so far, which settle
  on those of the clip;
* attention carries keys and values of the last :data:`ATTENTION_FRAMES` latent frames: exact up to that length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from omnihuman_vae.adapters.causal import Prepare, causal_conv, slabs, upsample_conv, without_rim
from omnihuman_vae.adapters.tiles import TileCache
from omnihuman_vae.layers import Cache

NORM_EPS = 1e-6
ATTENTION_FRAMES = 32
"""Latent frames that attention looks back on in a stream."""


class ClipNorm(nn.GroupNorm):
    """Group norm over ``(B, C, T, H, W)`` whose statistics are taken first and applied a slab at a time."""

    def measure(self, x: Tensor, cache: Cache | None, *, activation: bool) -> Prepare:
        """Statistics of ``x``, and of the frames before it in a stream.

        Args:
            x: ``(B, C, T, H, W)``.
            cache: Holds count, mean and squared deviations ``(3, B, groups)`` of the frames so far.
            activation: Follow the norm by SiLU.

        Returns:
            What maps ``(B, C, T', H, W)`` to its normalised values.
        """
        if isinstance(cache, TileCache):
            return self._mapping(cache.statistics[self], activation=activation)
        earlier = None if cache is None else cache.get(self)
        for start, stop in slabs(x):
            values = rearrange(x[:, :, start:stop], "b c t h w -> b (t h w) c").float()  # (B, L, C)
            # Channel by channel first: a reduction over rows, several times as fast as one over groups.
            mean = values.mean(dim=1, keepdim=True)  # (B, 1, C)
            squares = (values - mean).square().sum(dim=1)  # (B, C)
            mean, squares = (
                rearrange(value, "b ... (g c) -> b ... g c", g=self.num_groups) for value in (mean, squares)
            )
            mean = mean[:, 0]  # (B, groups, C / groups)
            center = mean.mean(dim=2, keepdim=True)
            squares = squares.sum(dim=2) + values.shape[1] * (mean - center).square().sum(dim=2)  # (B, groups)
            count = torch.full_like(squares, values[0].numel() / self.num_groups)
            piece = torch.stack([count, center[:, :, 0], squares])  # (3, B, groups)
            earlier = _merge(earlier, piece)
        assert earlier is not None
        if cache is not None:
            cache[self] = earlier
        return self._mapping(earlier, activation=activation)

    def _mapping(self, statistics: Tensor, *, activation: bool) -> Prepare:
        count, mean, squares = statistics
        scale = (squares / count + self.eps).rsqrt()
        repeats = self.num_channels // self.num_groups
        weight = self.weight.float() * scale.repeat_interleave(repeats, dim=1)  # (B, C)
        shift = self.bias.float() - weight * mean.repeat_interleave(repeats, dim=1)  # (B, C)
        weight, shift = (value[:, :, None, None, None] for value in (weight, shift))

        def apply(slab: Tensor) -> Tensor:
            y = torch.addcmul(shift, slab.float(), weight)
            if activation:
                y = F.silu(y, inplace=not y.requires_grad)
            return y.to(slab.dtype)

        return apply


class NormsOnly(Cache):
    """Keeps the statistics of norms and forgets the frames: pieces of a clip that do not follow each other."""

    def __setitem__(self, key: nn.Module, value: Tensor) -> None:
        if isinstance(key, ClipNorm):
            super().__setitem__(key, value)


def _merge(a: Tensor | None, b: Tensor) -> Tensor:
    """Count, mean and squared deviations of two sets together (Chan, Golub and LeVeque 1979, equation 2.1)."""
    if a is None:
        return b
    count = a[0] + b[0]
    step = b[1] - a[1]
    return torch.stack([count, a[1] + step * b[0] / count, a[2] + b[2] + step.square() * a[0] * b[0] / count])


class HunyuanConv(nn.Module):
    """Convolution over ``(B, C, T, H, W)`` that repeats the first frame before the clip and the picture's border."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: tuple[int, int, int] = (1, 1, 1)
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride)

    def forward(
        self, x: Tensor, cache: Cache | None = None, prepare: Prepare | None = None, *, in_place: bool = False
    ) -> Tensor:
        """Convolve the next frames; see :func:`causal_conv`."""
        return causal_conv(self, self.conv, x, cache, border="replicate", prepare=prepare, in_place=in_place)


class HunyuanResidualBlock(nn.Module):
    """Group norm, SiLU and convolution, twice, around a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = ClipNorm(groups, in_channels, NORM_EPS)
        self.conv1 = HunyuanConv(in_channels, out_channels, 3)
        self.norm2 = ClipNorm(groups, out_channels, NORM_EPS)
        self.conv2 = HunyuanConv(out_channels, out_channels, 3)
        self.conv_shortcut = HunyuanConv(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """``(B, C, T, H, W)`` to ``(B, C_out, T, H, W)``."""
        residual: Tensor = self.conv1(x, cache, self.norm1.measure(x, cache, activation=True))
        # In place where nothing has to be kept for gradients: at full size one activation is gigabytes.
        in_place = not torch.is_grad_enabled()
        residual = self.conv2(residual, cache, self.norm2.measure(residual, cache, activation=True), in_place=in_place)
        shortcut: Tensor = self.conv_shortcut(without_rim(x, cache, 2))
        return residual.add_(shortcut) if in_place else residual + shortcut


class FrameCausalAttention(nn.Module):
    """Self-attention of one head: a position sees its own frame and earlier ones.

    Frame after frame is matched against the keys up to it, so that no mask is ever made.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = ClipNorm(groups, channels, NORM_EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        # The public layout numbers a dropout layer 1.
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """``(B, C, t, h, w)`` to the same shape."""
        batch, _, frames, height, width = x.shape
        normed = self.group_norm.measure(x, cache, activation=False)(x)
        tokens = rearrange(normed, "b c t h w -> b 1 (t h w) c")  # (B, 1, L, C)
        q, k, v = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)
        positions = height * width
        if cache is not None:
            earlier = cache.get(self)
            if earlier is not None:
                k, v = torch.cat([earlier[0], k], dim=2), torch.cat([earlier[1], v], dim=2)
            kept = k.shape[2] - ATTENTION_FRAMES * positions
            cache[self] = torch.stack([k[:, :, max(kept, 0) :], v[:, :, max(kept, 0) :]])
        before = k.shape[2] - frames * positions
        attended = []
        for frame in range(frames):
            stop = before + (frame + 1) * positions
            start = 0 if cache is None else max(stop - (ATTENTION_FRAMES + 1) * positions, 0)
            query = q[:, :, frame * positions : (frame + 1) * positions]
            attended.append(F.scaled_dot_product_attention(query, k[:, :, start:stop], v[:, :, start:stop]))
        tokens = self.to_out[0](torch.cat(attended, dim=2)[:, 0])  # (B, L, C)
        change: Tensor = rearrange(tokens, "b (t h w) c -> b t h w c", t=frames, h=height).movedim(-1, 1)
        return x + change  # (B, C, t, h, w)


class HunyuanMidBlock(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, channels: int, groups: int, *, attention: bool) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([FrameCausalAttention(channels, groups)] if attention else [])
        self.resnets = nn.ModuleList(HunyuanResidualBlock(channels, channels, groups) for _ in range(2))

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """``(B, C, t, h, w)`` to the same shape."""
        for module in (self.resnets[0], *self.attentions, self.resnets[1]):
            x = module(x, cache)
        return x


class HunyuanUpsample(nn.Module):
    """Doubles the picture, and time where asked; the first frame of a clip stays one."""

    def __init__(self, channels: int, *, temporal: bool) -> None:
        super().__init__()
        self.temporal = temporal
        self.conv = HunyuanConv(channels, channels, 3)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """``(B, C, t, h, w)`` to ``(B, C, t or 2t or 2t - 1, 2h, 2w)``."""
        conv = self.conv.conv
        return upsample_conv(self, conv.weight, conv.bias, x, cache, border="replicate", temporal=self.temporal)


class HunyuanDownsample(nn.Module):
    """Halves the picture, and time where asked."""

    def __init__(self, channels: int, *, temporal: bool) -> None:
        super().__init__()
        self.temporal = temporal
        self.conv = HunyuanConv(channels, channels, 3, stride=(2 if temporal else 1, 2, 2))

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """``(B, C, T, H, W)`` to ``(B, C, T or (T + 1) / 2, H / 2, W / 2)``."""
        halved: Tensor = self.conv(x, cache)
        return halved


class HunyuanLevel(nn.Module):
    """Residual blocks of one width, and the step to the next level, which the layouts keep under two names.

    :meth:`TiledEncoder.stages` and :meth:`TiledDecoder.steps` run them.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        groups: int,
        *,
        downsample: HunyuanDownsample | None = None,
        upsample: HunyuanUpsample | None = None,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            HunyuanResidualBlock(a, b, groups) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.downsamplers = nn.ModuleList([] if downsample is None else [downsample])
        self.upsamplers = nn.ModuleList([] if upsample is None else [upsample])
