r"""Gated residual, per segment: :math:`y = r + g \odot x`.

Traffic for a token of width ``h`` in 2-byte numbers: forward ``6 h`` bytes (read r and x, write y), backward ``6 h``
(read dy and x, write dx; dr is dy itself); the gates are read once a chunk. Two flops a number forward, three backward:
bound by memory. Eager reference: ``omnihuman_core.ops``.
"""

# Triton functions take blocks and pointers, for which Python has no types, and custom ops return Any.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-any-return, type-arg, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnihuman_kernels._launch import LENGTHS, launch, looping_programs, require_device, unit_stride
from omnihuman_kernels._segments import (
    FORWARD_ROWS,
    backward_rows,
    check_segments,
    chunk_rows,
    num_chunks,
    row_block,
    segment_ends,
    sum_chunks,
)


@triton.jit(do_not_specialize=LENGTHS)
def forward_kernel(
    residual_ptr, x_ptr, gate_ptr, y_ptr,
    r_stride_b, r_stride_l, x_stride_b, x_stride_l, g_stride_b, g_stride_s,
    ends, length, width,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A chunk of rows of one segment."""
    batch = tl.program_id(1).to(tl.int64)
    segment, first, last = chunk_rows(tl.program_id(0), ends, ROWS)
    dims = tl.arange(0, BLOCK_D)
    inside = dims < width
    gate = tl.load(gate_ptr + batch * g_stride_b + segment * g_stride_s + dims, mask=inside, other=0.0).to(tl.float32)
    for step in range(last - first):
        wide = (first + step).to(tl.int64)
        residual = tl.load(residual_ptr + batch * r_stride_b + wide * r_stride_l + dims, mask=inside, other=0.0)
        x = tl.load(x_ptr + batch * x_stride_b + wide * x_stride_l + dims, mask=inside, other=0.0)
        y = residual.to(tl.float32) + gate * x.to(tl.float32)
        tl.store(y_ptr + (batch * length + wide) * width + dims, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=LENGTHS)
def backward_kernel(
    dy_ptr, x_ptr, gate_ptr, dx_ptr, partial_ptr,
    dy_stride_b, dy_stride_l, x_stride_b, x_stride_l, g_stride_b, g_stride_s,
    ends, rows_a_chunk, length, width,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A chunk of rows of one segment, and its part of the gate's gradient."""
    batch = tl.program_id(1).to(tl.int64)
    segment, first, last = chunk_rows(tl.program_id(0), ends, rows_a_chunk)
    dims = tl.arange(0, BLOCK_D)
    inside = dims < width
    gate = tl.load(gate_ptr + batch * g_stride_b + segment * g_stride_s + dims, mask=inside, other=0.0).to(tl.float32)
    dgate = tl.zeros((BLOCK_D,), tl.float32)
    for step in range(last - first):
        wide = (first + step).to(tl.int64)
        dy = tl.load(dy_ptr + batch * dy_stride_b + wide * dy_stride_l + dims, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + batch * x_stride_b + wide * x_stride_l + dims, mask=inside, other=0.0).to(tl.float32)
        dgate += dy * x
        dx = gate * dy
        tl.store(dx_ptr + (batch * length + wide) * width + dims, dx.to(dx_ptr.dtype.element_ty), mask=inside)
    tl.store(partial_ptr + (batch * tl.num_programs(0) + tl.program_id(0)) * width + dims, dgate, mask=inside)


@torch.library.custom_op("omnihuman::gated_residual", mutates_args=())
def _forward(residual: Tensor, x: Tensor, gate: Tensor, segments: list[int]) -> Tensor:
    require_device(x)
    residual, x, gate = unit_stride(residual), unit_stride(x), unit_stride(gate)
    y = _empty_forward(residual, x, gate, segments)
    block, warps = row_block(x.shape[2])
    launch(
        forward_kernel, (num_chunks(segments, FORWARD_ROWS), x.shape[0]), x,
        residual, x, gate, y, *residual.stride()[:2], *x.stride()[:2], *gate.stride()[:2],
        segment_ends(segments), x.shape[1], x.shape[2], ROWS=FORWARD_ROWS, BLOCK_D=block, num_warps=warps,
    )  # fmt: skip
    return y


@_forward.register_fake
def _empty_forward(residual: Tensor, x: Tensor, gate: Tensor, segments: list[int]) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.promote_types(residual.dtype, x.dtype))


@torch.library.custom_op("omnihuman::gated_residual_backward", mutates_args=())
def _backward(dy: Tensor, x: Tensor, gate: Tensor, segments: list[int]) -> tuple[Tensor, Tensor]:
    require_device(x)
    dy, x, gate = unit_stride(dy), unit_stride(x), unit_stride(gate)
    batch, length, width = x.shape
    rows = backward_rows(batch, segments, looping_programs(x))
    chunks = num_chunks(segments, rows)
    dx = x.new_empty(x.shape)
    partial = x.new_empty((1, batch, chunks, width), dtype=torch.float32)
    block, warps = row_block(width)
    launch(
        backward_kernel, (chunks, batch), x,
        dy, x, gate, dx, partial, *dy.stride()[:2], *x.stride()[:2], *gate.stride()[:2],
        segment_ends(segments), rows, length, width, BLOCK_D=block, num_warps=warps,
    )  # fmt: skip
    return dx, sum_chunks(partial, segments, rows)[0].to(gate.dtype)


@_backward.register_fake
def _empty_backward(dy: Tensor, x: Tensor, gate: Tensor, segments: list[int]) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), gate.new_empty(gate.shape)


def _setup(ctx, inputs, output) -> None:
    residual, x, gate, ctx.segments = inputs
    ctx.residual_dtype = residual.dtype
    ctx.save_for_backward(x, gate)


def _differentiate(ctx, dy):
    dx, dgate = _backward(dy, *ctx.saved_tensors, ctx.segments)
    return dy.to(ctx.residual_dtype), dx, dgate, None


_forward.register_autograd(_differentiate, setup_context=_setup)


def gated_residual(residual: Tensor, x: Tensor, gate: Tensor, *, segments: tuple[int, ...]) -> Tensor:
    """``residual + gate * x``, per segment.

    Args:
        residual: ``(B, L, D)``.
        x: ``(B, L, D)``.
        gate: ``(B, len(segments), D)``.
        segments: Length of each segment, in order; they add up to L.

    Returns:
        ``(B, L, D)``, contiguous, in the wider of the types of ``residual`` and ``x``.

    Raises:
        ValueError: A shape does not fit, or the tensors are not on a CUDA device.
    """
    if x.ndim != 3 or residual.shape != x.shape:
        raise ValueError(
            f"residual and x must have one shape (B, L, D); got {tuple(residual.shape)} and {tuple(x.shape)}"
        )
    check_segments(segments, x.shape[1])
    if gate.shape != (x.shape[0], len(segments), x.shape[2]):
        raise ValueError(f"gate must have shape {(x.shape[0], len(segments), x.shape[2])}; got {tuple(gate.shape)}")
    return _forward(residual, x, gate, list(segments))
