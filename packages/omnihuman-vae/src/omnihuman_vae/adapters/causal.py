"""Causal convolution and upsampling for foreign weights, a few frames at a time.

Both work through a clip in slabs of frames, carrying over the frames that the next slab needs. So neither padded nor
normalised activations ever exist for more than a slab, and streaming a clip in pieces is the same loop with the caller
holding the carried frames. Activations are channels-last in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from omnihuman_vae.adapters.tiles import Sides, sides_inside
from omnihuman_vae.layers import Cache

Border = Literal["zeros", "replicate"]
Prepare = Callable[[Tensor], Tensor]

# Values of an activation that are padded or normalised at once; a slab holds at least one frame.
SLAB_VALUES = 1 << 21

ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int, int] = (1, 1, 1),
    padding: tuple[int, int, int] = (0, 0, 0),
) -> Tensor:
    """``F.conv3d``, by oneDNN wherever it can be.

    For one clip of less than about 20,000 values a plane (C * T * H), torch unfolds the input on the CPU instead, at 27
    times its memory and a fifth of the speed.
    """
    if x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and ONEDNN:
        return torch.mkldnn_convolution(x, weight, bias, padding, stride, (1, 1, 1), 1)
    return F.conv3d(x, weight, bias, stride, padding)


def slabs(x: Tensor, *, multiple: int = 1, alone: int = 0) -> Iterator[tuple[int, int]]:
    """Bounds of slabs of ``(B, C, T, H, W)`` in time: ``alone + k * multiple`` frames first, then ``k * multiple``."""
    frames = x.shape[2]
    size = max(SLAB_VALUES // max(x[:, :, 0].numel(), 1) // multiple, 1) * multiple
    start = 0
    while start < frames:
        stop = min(start + size + (alone if start == 0 else 0), frames)
        yield start, stop
        start = stop


def channels_last(x: Tensor, channels: int, frames: int, height: int, width: int) -> Tensor:
    """Empty ``(B, channels, frames, height, width)`` with the batch, dtype and device of ``x``, channels last."""
    return x.new_empty((x.shape[0], frames, height, width, channels)).movedim(-1, 1)  # (B, C, T, H, W)


def causal_conv(
    owner: nn.Module,
    conv: nn.Conv3d,
    x: Tensor,
    cache: Cache | None,
    *,
    border: Border,
    prepare: Prepare | None = None,
    in_place: bool = False,
) -> Tensor:
    """Convolution that sees its own frame and earlier ones.

    Args:
        owner: Key of the carried frames in ``cache``.
        conv: Its weight, bias and stride; its padding is not used.
        x: Next frames, ``(B, C, T, H, W)``.
        cache: Frames carried between the pieces of a clip; None where ``x`` is a whole clip.
        border: What lies outside the picture and before the clip: zeros, or the nearest position.
        prepare: Applied to each slab first (norm and activation).
        in_place: Write the result over ``x``, of the same shape, slab after slab: none is needed twice.

    Returns:
        ``(B, C_out, T', H', W')``; with a temporal stride of 2 the first frame of a clip stands alone.
    """
    if conv.kernel_size == (1, 1, 1) and prepare is None:
        return F.linear(x.movedim(1, -1), conv.weight.flatten(1), conv.bias).movedim(-1, 1)  # (B, C_out, T, H, W)
    time, height, width = conv.kernel_size
    stride = conv.stride[0]
    earlier = None if cache is None else cache.get(owner)
    starts = earlier is None
    frames = x.shape[2] if stride == 1 else (x.shape[2] + (1 if starts else 0)) // stride
    inside = sides_inside(cache)
    margins = _margins(inside, height // 2, width // 2)
    lost = (2 * (height // 2) - margins[0] - margins[1], 2 * (width // 2) - margins[2] - margins[3])
    size = (-(-(x.shape[3] - lost[0]) // conv.stride[1]), -(-(x.shape[4] - lost[1]) // conv.stride[2]))
    padding = (0, 0, 0)
    if border == "zeros" and not any(inside):
        # The convolution makes borders of zeros itself.
        margins, padding = (0, 0, 0, 0), (0, height // 2, width // 2)
    out: Tensor | None = without_rim(x, cache, height // 2) if in_place else None
    done = 0
    for start, stop in slabs(x, multiple=stride, alone=1 if starts and stride > 1 else 0):
        slab = x[:, :, start:stop]
        if prepare is not None:
            slab = prepare(slab)
        if time > 1:
            earlier = _before(slab, time - 1, border) if earlier is None else earlier
            carried = _last(earlier, slab, time - stride)
            slab = _surrounded(earlier, slab, margins, zeros=border == "zeros")
            earlier = carried
        piece = convolve(slab, conv.weight, conv.bias, (stride, conv.stride[1], conv.stride[2]), padding)
        if piece.shape[2] == frames and not in_place:
            out = piece
            break
        if out is None:
            out = channels_last(x, conv.out_channels, frames, *size)
        out[:, :, done : done + piece.shape[2]] = piece
        done += piece.shape[2]
    assert out is not None
    if cache is not None and earlier is not None:
        cache[owner] = earlier
    return out


def upsample_conv(
    owner: nn.Module,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    cache: Cache | None,
    *,
    border: Border,
    temporal: bool,
) -> Tensor:
    """Nearest-neighbour upsampling and a convolution of 3 positions, as one step at the small size.

    On a picture doubled by repetition, three neighbouring taps fall on two distinct positions. Adding up the taps that
    meet gives one kernel of 2 for even results and one for odd: 4 products per result in the plane instead of 9, and
    over time 2 instead of 3. The doubled picture never exists.

    Args:
        owner: Key of the carried frames in ``cache``.
        weight: ``(C_out, C, 3 or 1, 3, 3)``.
        bias: ``(C_out,)``.
        x: Next frames, ``(B, C, T, H, W)``.
        cache: Frames carried between the pieces of a clip; None where ``x`` is a whole clip.
        border: What lies outside the picture and before the clip.
        temporal: Double time too; the first frame of a clip stays one. Needs 3 taps over time.

    Returns:
        ``(B, C_out, T or 2T or 2T - 1, 2H, 2W)``.
    """
    channels = weight.shape[0]
    margins = _margins(sides_inside(cache), 1, 1)
    # A position has two results; one takes the neighbour before it and one the neighbour behind it.
    height, width = x.shape[3] + margins[0] + margins[1] - 2, x.shape[4] + margins[2] + margins[3] - 2
    repeats = 2 if temporal else 1
    kernel = weight.float()
    # Over time both results of a frame look at it and the one before.
    phases = [_odd(kernel, 2), _even(kernel, 2)] if temporal else [kernel]
    kernel = torch.cat(phases)  # (repeats * C_out, C, time, 3, 3)
    bias = None if bias is None else bias.repeat(repeats)
    time = kernel.shape[2]
    planes = {
        (row, column): (_even, _odd)[column]((_even, _odd)[row](kernel, 3), 4).to(weight.dtype)
        for row in (0, 1)
        for column in (0, 1)
    }
    out = x.new_empty((x.shape[0], x.shape[2], repeats, height, 2, width, 2, channels))  # (B, T, R, H, 2, W, 2, C)
    earlier = None if cache is None else cache.get(owner)
    starts = earlier is None
    for start, stop in slabs(x):
        slab = x[:, :, start:stop]
        if time > 1:
            earlier = _before(slab, time - 1, border) if earlier is None else earlier
            carried = _last(earlier, slab, time - 1)
            slab = _surrounded(earlier, slab, margins, zeros=border == "zeros")
            earlier = carried
        else:
            slab = _surrounded(None, slab, margins, zeros=border == "zeros")
        for (row, column), plane in planes.items():
            piece = convolve(slab[..., row : row + height + 1, column : column + width + 1], plane, bias)
            out[:, start:stop, :, :, row, :, column] = rearrange(
                piece, "b (r c) t h w -> b t r h w c", r=repeats
            )  # (B, T, R, H, W, C)
    if cache is not None and earlier is not None:
        cache[owner] = earlier
    video = rearrange(out, "b t r h p w q c -> b (t r) (h p) (w q) c").movedim(-1, 1)  # (B, C, T, H, W)
    # Behind the first frame of a clip there is one frame only.
    return video[:, :, 1:] if temporal and starts else video


def _even(kernel: Tensor, dim: int) -> Tensor:
    """Taps on (i - 1, i) for the first of the two results of position i."""
    first, second, third = kernel.unbind(dim)
    return torch.stack([first, second + third], dim)


def _odd(kernel: Tensor, dim: int) -> Tensor:
    """Taps on (i, i + 1) in the plane, on (j - 1, j) over time, where the first two taps meet."""
    first, second, third = kernel.unbind(dim)
    return torch.stack([first + second, third], dim)


def _before(slab: Tensor, frames: int, border: Border) -> Tensor:
    """What lies before a clip, ``(B, C, frames, H, W)``."""
    first = slab[:, :, :1]
    return (torch.zeros_like(first) if border == "zeros" else first).expand(-1, -1, frames, -1, -1)


def _last(earlier: Tensor, slab: Tensor, frames: int) -> Tensor:
    """Copy of the last frames: a view would keep the whole slab alive."""
    missing = frames - slab.shape[2]
    if missing <= 0:
        return slab[:, :, slab.shape[2] - frames :].clone()
    return torch.cat([earlier[:, :, earlier.shape[2] - missing :], slab], dim=2)


def without_rim(x: Tensor, cache: Cache | None, reach: int) -> Tensor:
    """``x`` without the rim that convolutions of ``reach`` positions lose where a tile ends inside the picture."""
    top, bottom, left, right = (reach * side for side in sides_inside(cache))
    return x[..., top : x.shape[3] - bottom, left : x.shape[4] - right]


def _margins(inside: Sides, rows: int, columns: int) -> Sides:
    """Positions to add at each side."""
    top, bottom, left, right = (1 - side for side in inside)
    return rows * top, rows * bottom, columns * left, columns * right


def _surrounded(earlier: Tensor | None, slab: Tensor, margins: Sides, *, zeros: bool) -> Tensor:
    """``slab`` behind ``earlier`` with a border of zeros, or of the nearest position; one copy, channels last."""
    _, channels, frames, height, width = slab.shape
    before = 0 if earlier is None else earlier.shape[2]
    top, bottom, left, right = margins
    x = channels_last(slab, channels, before + frames, top + height + bottom, left + width + right)
    inner = x[..., top : top + height, left : left + width]
    if earlier is not None:
        inner[:, :, :before] = earlier
    inner[:, :, before:] = slab
    # Rows first, then whole columns, so that corners are filled.
    columns = slice(left, left + width)
    x[..., :top, columns] = 0 if zeros else x[..., top : top + 1, columns]
    x[..., top + height :, columns] = 0 if zeros else x[..., top + height - 1 : top + height, columns]
    x[..., :left] = 0 if zeros else x[..., left : left + 1]
    x[..., left + width :] = 0 if zeros else x[..., left + width - 1 : left + width]
    return x
