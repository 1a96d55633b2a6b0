"""Layers that never look ahead in time and never mix statistics over positions.

Each layer takes an optional ``cache``. Without one the input is a whole clip. With one, the input is the next piece of
a clip: the layer finds the frames it still needs from earlier pieces under its own key and leaves those that the next
piece needs. The cache is owned by the caller; modules hold no state between calls, and a cache never grows with the
clip.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from omnihuman_vae.config import CausalVAEConfig

Cache = dict[nn.Module, Tensor]


class PositionRMSNorm(nn.Module):
    """RMSNorm over the channels of each position alone, ``(B, C, T, H, W)`` to the same shape."""

    def __init__(self, channels: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise in the precision of ``x``'s autocast rules; shape of ``x``."""
        x = x.movedim(1, -1)  # (B, T, H, W, C)
        x = F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)
        return x.movedim(-1, 1)  # (B, C, T, H, W)


class CausalConv3d(nn.Module):
    """Convolution over ``(B, C, T, H, W)`` that sees its own frame and earlier ones; before the clip it sees zeros.

    The zeros are also what tells the first latent frame, which covers a single pixel frame, from the later ones.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: tuple[int, int, int],
        temporal_stride: int = 1,
        spatial_stride: int = 1,
    ) -> None:
        super().__init__()
        self.kernel = kernel
        self.temporal_stride = temporal_stride
        # A kernel as large as its stride tiles the picture and needs no border.
        padding = 0 if spatial_stride > 1 else kernel[1] // 2
        self.conv = nn.Conv3d(
            in_channels,
            out_channels,
            kernel,
            stride=(temporal_stride, spatial_stride, spatial_stride),
            padding=(0, padding, padding),
        )

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """Convolve the next frames; ``(B, C_out, T / temporal_stride, ...)``, first frame of a clip alone."""
        if self.kernel[0] > 1:
            earlier = None if cache is None else cache.get(self)
            if earlier is None:
                x = F.pad(x, (0, 0, 0, 0, self.kernel[0] - 1, 0))
            else:
                x = torch.cat([earlier, x], dim=2)
            if cache is not None:
                # A copy, so that the cache does not keep the whole piece alive.
                cache[self] = x[:, :, x.shape[2] - (self.kernel[0] - self.temporal_stride) :].clone()
        x = self.conv(x)
        return x

    def set_matrix(self, matrix: Tensor) -> None:
        """Set the weight of a convolution of one position to ``(C_out, C_in)`` and its bias to zero."""
        with torch.no_grad():
            self.conv.weight.copy_(matrix[:, :, None, None, None])
            nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]


class ResidualBlock(nn.Module):
    """Two causal convolutions around an identity; starts as the identity."""

    def __init__(self, channels: int, config: CausalVAEConfig) -> None:
        super().__init__()
        time = config.temporal_kernel
        first, second = ((1, 3, 3), (time, 1, 1)) if config.convolution == "factored" else ((time, 3, 3), (time, 3, 3))
        self.norm1 = PositionRMSNorm(channels, eps=config.norm_eps)
        self.conv1 = CausalConv3d(channels, channels, kernel=first)
        self.norm2 = PositionRMSNorm(channels, eps=config.norm_eps)
        self.conv2 = CausalConv3d(channels, channels, kernel=second)
        nn.init.zeros_(self.conv2.conv.weight)
        nn.init.zeros_(self.conv2.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """``(B, C, T, H, W)`` to the same shape."""
        residual: Tensor = self.conv1(F.silu(self.norm1(x)), cache)
        residual = self.conv2(F.silu(self.norm2(residual)), cache)
        return x + residual


class Downsample(nn.Module):
    """Step to the next level: halves the picture and time where asked, and changes the width."""

    def __init__(self, in_channels: int, out_channels: int, *, spatial: bool, temporal: bool) -> None:
        super().__init__()
        size = 2 if spatial else 1
        self.spatial = CausalConv3d(in_channels, out_channels, kernel=(1, size, size), spatial_stride=size)
        self.temporal = (
            CausalConv3d(out_channels, out_channels, kernel=(3, 1, 1), temporal_stride=2) if temporal else None
        )

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """``(B, C, 1 + 2k, H, W)`` to ``(B, C_out, 1 + k, H / 2, W / 2)`` when both are halved."""
        x = self.spatial(x, cache)
        return x if self.temporal is None else self.temporal(x, cache)


class Upsample(nn.Module):
    """Step to the previous level, the mirror of :class:`Downsample`, by moving channels to positions."""

    def __init__(self, in_channels: int, out_channels: int, *, spatial: bool, temporal: bool) -> None:
        super().__init__()
        self.size = 2 if spatial else 1
        self.temporal = CausalConv3d(in_channels, 2 * in_channels, kernel=(3, 1, 1)) if temporal else None
        self.spatial = CausalConv3d(in_channels, out_channels * self.size**2, kernel=(1, 1, 1))

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """``(B, C, 1 + k, h, w)`` to ``(B, C_out, 1 + 2k, 2h, 2w)`` when both are doubled."""
        if self.temporal is not None:
            starts = cache is None or self.temporal not in cache
            x = unfold_positions(self.temporal(x, cache), (2, 1, 1), starts=starts)
        return unfold_positions(self.spatial(x, cache), (1, self.size, self.size), starts=False)


def fold_positions(x: Tensor, size: tuple[int, int, int], *, starts: bool) -> Tensor:
    """Fold tubelets of ``size`` positions into channels.

    Args:
        x: ``(B, C, T, H, W)``.
        size: ``(frames, height, width)`` of a tubelet.
        starts: The piece starts a clip: its first frame is a tubelet of its own, repeated to fill it.

    Returns:
        ``(B, frames * height * width * C, T', H / height, W / width)``, channels last in memory.
    """
    if starts and size[0] > 1:
        x = torch.cat([x[:, :, :1].expand(-1, -1, size[0] - 1, -1, -1), x], dim=2)
    x = rearrange(
        x, "b c (t f) (h p) (w q) -> b t h w (f p q c)", f=size[0], p=size[1], q=size[2]
    )  # (B, T', H', W', F * P * Q * C)
    return x.movedim(-1, 1)  # (B, F * P * Q * C, T', H', W')


def unfold_positions(x: Tensor, size: tuple[int, int, int], *, starts: bool) -> Tensor:
    """Inverse of :func:`fold_positions`; at the start of a clip only the last frame of the first tubelet is kept."""
    if size != (1, 1, 1):
        x = rearrange(
            x.movedim(1, -1), "b t h w (f p q c) -> b (t f) (h p) (w q) c", f=size[0], p=size[1], q=size[2]
        )  # (B, T, H, W, C)
        x = x.movedim(-1, 1)  # (B, C, T, H, W)
    return x[:, :, size[0] - 1 :] if starts else x
