r"""RMSNorm over channels, SiLU and causal padding in front of a convolution, in one pass over a video.

.. math::
    y = \mathrm{silu}(w \odot x / \sqrt{\mathrm{mean}_c(x^2) + \epsilon})

The padding is written by the same kernel: zeros before a clip, or the frames that an earlier piece left. Both memory
formats of a video are read in place, channels first and ``torch.channels_last_3d``.

Traffic for a position of C channels in 2-byte numbers: forward ``4 C`` bytes (read x, write y), backward ``6 C``. About
10 flops a number forward, 25 backward: bound by memory. Eager reference: ``silu(rms_norm(x))`` and a pad.
"""

# Triton functions take blocks and pointers, for which Python has no types, and custom ops return Any.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-any-return, type-arg, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnihuman_kernels._launch import launch, looping_programs, require_device, unit_stride

MOST_CHANNELS = 1024

# Tiles in flight in backward, through shared memory: only two programs fit a multiprocessor, too few to hide loads.
PREFETCH = 3


@triton.jit
def forward_kernel(
    x_ptr, earlier_ptr, weight_ptr, y_ptr,
    x_stride_b, x_stride_c, x_stride_p, e_stride_b, e_stride_c, e_stride_p, y_stride_b, y_stride_c, y_stride_p,
    channels, positions, front, eps,
    PADDED: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """A tile of positions with all their channels."""
    batch = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, BLOCK_C)
    # Positions of the output: those before ``front`` are padding.
    p = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (c < channels)[:, None] & (p < front + positions)[None, :]
    at = batch * x_stride_b + c.to(tl.int64)[:, None] * x_stride_c + (p - front)[None, :] * x_stride_p
    x = tl.load(x_ptr + at, mask=inside & (p >= front)[None, :], other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
    rstd = tl.rsqrt(tl.sum(x * x, axis=0) / channels + eps)
    normed = x * rstd[None, :] * weight[:, None]
    y = normed * tl.sigmoid(normed)
    if PADDED:
        at = batch * e_stride_b + c.to(tl.int64)[:, None] * e_stride_c + p[None, :] * e_stride_p
        y += tl.load(earlier_ptr + at, mask=inside & (p < front)[None, :], other=0.0).to(tl.float32)
    at = batch * y_stride_b + c.to(tl.int64)[:, None] * y_stride_c + p[None, :] * y_stride_p
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    dy_ptr, x_ptr, weight_ptr, dx_ptr, dweight_ptr,
    dy_stride_b, dy_stride_c, dy_stride_p, x_stride_b, x_stride_c, x_stride_p, dx_stride_b, dx_stride_c, dx_stride_p,
    channels, positions, front, tiles_a_sample, num_tiles, eps,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Tiles of positions, and their part of the weight's gradient."""
    c = tl.arange(0, BLOCK_C)
    wide = c.to(tl.int64)[:, None]
    weight = tl.load(weight_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
    dweight = tl.zeros((BLOCK_C,), tl.float32)
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), num_stages=STAGES):
        batch = tl.cast(tile // tiles_a_sample, tl.int64)
        p = tl.cast(tile % tiles_a_sample, tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
        inside = (c < channels)[:, None] & (p < positions)[None, :]
        x_at = batch * x_stride_b + wide * x_stride_c + p[None, :] * x_stride_p
        dy_at = batch * dy_stride_b + wide * dy_stride_c + (p + front)[None, :] * dy_stride_p
        x = tl.load(x_ptr + x_at, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + dy_at, mask=inside, other=0.0).to(tl.float32)
        rstd = tl.rsqrt(tl.sum(x * x, axis=0) / channels + eps)
        unit = x * rstd[None, :]
        normed = unit * weight[:, None]
        gate = tl.sigmoid(normed)
        dnormed = dy * gate * (1.0 + normed * (1.0 - gate))
        dweight += tl.sum(dnormed * unit, axis=1)
        dunit = dnormed * weight[:, None]
        dx = (dunit - unit * (tl.sum(dunit * unit, axis=0) / channels)[None, :]) * rstd[None, :]
        dx_at = batch * dx_stride_b + wide * dx_stride_c + p[None, :] * dx_stride_p
        tl.store(dx_ptr + dx_at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
    # One row a program and a sum afterwards: the same bits on every run, which atomics would not give.
    tl.store(dweight_ptr + tl.program_id(0).to(tl.int64) * channels + c, dweight, mask=c < channels)


def _channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()


def _strides(x: Tensor) -> tuple[int, int, int]:
    """Strides of batch, channel and position, where frames, rows and columns are one run of positions."""
    return x.stride(0), x.stride(1), 1 if x.is_contiguous() else x.shape[1]


def _dense(x: Tensor, *, like: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d if _channels_last(like) else torch.contiguous_format)


def _block(channels: int, *, contiguous: bool) -> tuple[int, int, int]:
    """Channels and positions of a tile, and its warps: 32 numbers a thread, whole sectors along what is contiguous."""
    block_c = triton.next_power_of_2(channels)
    block_p = min(128, max(16, 8192 // block_c) if contiguous else max(4, 4096 // block_c))
    return block_c, block_p, min(16, max(4, block_c * block_p // 1024))


def _backward_block(channels: int, *, contiguous: bool) -> tuple[int, int, int]:
    """As :func:`_block`, with 16 numbers a thread, so that the registers of a multiprocessor take two programs."""
    block_c = triton.next_power_of_2(channels)
    # 16 positions fill a sector; with 1024 channels as many would spill.
    block_p = min(128, max(16 if contiguous else 4, 4096 // block_c), 8192 // block_c)
    return block_c, block_p, min(16, max(4, block_c * block_p // 512))


@torch.library.custom_op("omnihuman::rms_norm_silu", mutates_args=())
def _forward(x: Tensor, weight: Tensor, earlier: Tensor | None, front: int, eps: float) -> Tensor:
    require_device(x)
    x, weight = _dense(x, like=x), unit_stride(weight)
    y = _empty_forward(x, weight, earlier, front, eps)
    batch, channels, frames, height, width = x.shape
    before = x if earlier is None else _dense(earlier, like=x)
    block_c, block_p, warps = _block(channels, contiguous=x.is_contiguous())
    launch(
        forward_kernel, (triton.cdiv((front + frames) * height * width, block_p), batch), x,
        x, before, weight, y, *_strides(x), *_strides(before), *_strides(y),
        channels, frames * height * width, front * height * width, eps,
        PADDED=earlier is not None, BLOCK_C=block_c, BLOCK_P=block_p, num_warps=warps,
    )  # fmt: skip
    return y


@_forward.register_fake
def _empty_forward(x: Tensor, weight: Tensor, earlier: Tensor | None, front: int, eps: float) -> Tensor:
    batch, channels, frames, height, width = x.shape
    form = torch.channels_last_3d if _channels_last(x) else torch.contiguous_format
    return torch.empty(
        (batch, channels, front + frames, height, width), dtype=x.dtype, device=x.device, memory_format=form
    )


@torch.library.custom_op("omnihuman::rms_norm_silu_backward", mutates_args=())
def _backward(dy: Tensor, x: Tensor, weight: Tensor, front: int, eps: float) -> tuple[Tensor, Tensor]:
    require_device(x)
    x, weight = _dense(x, like=x), unit_stride(weight)
    dy = _dense(dy, like=x)
    batch, channels, frames, height, width = x.shape
    positions = frames * height * width
    block_c, block_p, warps = _backward_block(channels, contiguous=x.is_contiguous())
    tiles = triton.cdiv(positions, block_p)
    programs = min(batch * tiles, looping_programs(x))
    dx = _empty_forward(x, weight, None, 0, eps)
    dweight = x.new_empty((programs, channels), dtype=torch.float32)
    launch(
        backward_kernel, (programs,), x,
        dy, x, weight, dx, dweight, *_strides(dy), *_strides(x), *_strides(dx),
        channels, positions, front * height * width, tiles, batch * tiles, eps,
        BLOCK_C=block_c, BLOCK_P=block_p, STAGES=PREFETCH, num_warps=warps,
    )  # fmt: skip
    return dx, dweight.sum(0).to(weight.dtype)


@_backward.register_fake
def _empty_backward(dy: Tensor, x: Tensor, weight: Tensor, front: int, eps: float) -> tuple[Tensor, Tensor]:
    return _empty_forward(x, weight, None, 0, eps), torch.empty_like(weight)


def _setup(ctx, inputs, output) -> None:
    x, weight, earlier, ctx.front, ctx.eps = inputs
    ctx.padded = earlier is not None
    ctx.save_for_backward(x, weight)


def _differentiate(ctx, dy):
    dx, dweight = _backward(dy, *ctx.saved_tensors, ctx.front, ctx.eps)
    return dx, dweight, dy[:, :, : ctx.front] if ctx.padded else None, None, None


_forward.register_autograd(_differentiate, setup_context=_setup)


def rms_norm_silu(x: Tensor, weight: Tensor, *, eps: float, front: int = 0, earlier: Tensor | None = None) -> Tensor:
    """RMSNorm over the channels of each position, SiLU, and ``front`` frames in front.

    Args:
        x: ``(B, C, T, H, W)``, C at most :data:`MOST_CHANNELS`.
        weight: ``(C,)``.
        eps: Added to the mean square, positive.
        front: Frames to put in front of the result, at least 0.
        earlier: ``(B, C, front, H, W)`` those frames, in the type of ``x``; zeros if None.

    Returns:
        ``(B, C, front + T, H, W)`` in the memory format of ``x``.

    Raises:
        ValueError: A shape does not fit, or the tensors are not on a CUDA device.
    """
    if x.ndim != 5 or not 1 <= x.shape[1] <= MOST_CHANNELS:
        raise ValueError(f"x must be (B, C, T, H, W) with 1 to {MOST_CHANNELS} channels; got {tuple(x.shape)}")
    if weight.shape != x.shape[1:2]:
        raise ValueError(f"weight must have shape {tuple(x.shape[1:2])}; got {tuple(weight.shape)}")
    if front < 0:
        raise ValueError(f"front must be at least 0; got {front}")
    expected = (*x.shape[:2], front, *x.shape[3:])
    if earlier is not None and (earlier.shape != expected or earlier.dtype != x.dtype):
        raise ValueError(f"earlier must be {x.dtype} of shape {expected}; got {earlier.dtype} {tuple(earlier.shape)}")
    return _forward(x, weight, earlier, front, eps)
