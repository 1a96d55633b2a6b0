r"""LayerNorm with a per-segment affine, alone or after a gated residual, in one pass.

.. math::
    s = r + g \odot x \quad (\text{or } s = x), \qquad
    y = \frac{s - \mathrm{mean}(s)}{\sqrt{\mathrm{var}(s) + \epsilon}} \odot (1 + \mathit{scale}) + \mathit{shift}

The norm is taken of the stream as it is stored, so that backward, which reads the stored one, sees the same numbers.

Traffic for a token of width ``h`` in 2-byte numbers: alone ``4 h`` bytes forward, ``6 h`` backward; with the residual
``8 h`` forward (read r and x, write s and y) and ``12 h`` backward (read ds, dy, s, x; write dr, dx). About 8 to 15
flops a number: bound by memory. Eager reference: ``omnihuman_core.ops``.
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

# Rows in flight in backward, through shared memory: its sums take the registers that more programs would need. The norm
# alone has fewer operands; with three triton 3.6 makes a kernel for Blackwell that spills.
PREFETCH, PREFETCH_ALONE = 3, 4


@triton.jit(do_not_specialize=LENGTHS)
def forward_kernel(
    residual_ptr, x_ptr, gate_ptr, shift_ptr, scale_ptr, stream_ptr, y_ptr, mean_ptr, rstd_ptr,
    r_stride_b, r_stride_l, x_stride_b, x_stride_l,
    gate_stride_b, gate_stride_s, shift_stride_b, shift_stride_s, scale_stride_b, scale_stride_s,
    ends, length, width, eps,
    GATED: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A chunk of rows of one segment."""
    batch = tl.program_id(1).to(tl.int64)
    segment, first, last = chunk_rows(tl.program_id(0), ends, ROWS)
    dims = tl.arange(0, BLOCK_D)
    inside = dims < width
    shift = tl.load(shift_ptr + batch * shift_stride_b + segment * shift_stride_s + dims, mask=inside, other=0.0)
    scale = tl.load(scale_ptr + batch * scale_stride_b + segment * scale_stride_s + dims, mask=inside, other=0.0)
    shift = shift.to(tl.float32)
    scale = scale.to(tl.float32) + 1.0
    if GATED:
        gate = tl.load(gate_ptr + batch * gate_stride_b + segment * gate_stride_s + dims, mask=inside, other=0.0)
        gate = gate.to(tl.float32)
    for step in range(last - first):
        wide = (first + step).to(tl.int64)
        out = (batch * length + wide) * width + dims
        x = tl.load(x_ptr + batch * x_stride_b + wide * x_stride_l + dims, mask=inside, other=0.0).to(tl.float32)
        if GATED:
            residual = tl.load(residual_ptr + batch * r_stride_b + wide * r_stride_l + dims, mask=inside, other=0.0)
            stored = (residual.to(tl.float32) + gate * x).to(stream_ptr.dtype.element_ty)
            tl.store(stream_ptr + out, stored, mask=inside)
            x = stored.to(tl.float32)
        mean = tl.sum(x, axis=0) / width
        centred = tl.where(inside, x - mean, 0.0)
        rstd = tl.rsqrt(tl.sum(centred * centred, axis=0) / width + eps)
        y = centred * rstd * scale + shift
        tl.store(y_ptr + out, y.to(y_ptr.dtype.element_ty), mask=inside)
        tl.store(mean_ptr + batch * length + wide, mean)
        tl.store(rstd_ptr + batch * length + wide, rstd)


@triton.jit(do_not_specialize=LENGTHS)
def backward_kernel(
    dstream_ptr, dy_ptr, stream_ptr, x_ptr, gate_ptr, scale_ptr, mean_ptr, rstd_ptr, dresidual_ptr, dx_ptr, partial_ptr,
    ds_stride_b, ds_stride_l, dy_stride_b, dy_stride_l, s_stride_b, s_stride_l, x_stride_b, x_stride_l,
    gate_stride_b, gate_stride_s, scale_stride_b, scale_stride_s,
    ends, rows_a_chunk, length, width,
    GATED: tl.constexpr, HAS_DSTREAM: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A chunk of rows of one segment, and its part of the modulations' gradients."""
    batch = tl.program_id(1).to(tl.int64)
    segment, first, last = chunk_rows(tl.program_id(0), ends, rows_a_chunk)
    dims = tl.arange(0, BLOCK_D)
    inside = dims < width
    scale = tl.load(scale_ptr + batch * scale_stride_b + segment * scale_stride_s + dims, mask=inside, other=0.0)
    scale = scale.to(tl.float32) + 1.0
    dshift = tl.zeros((BLOCK_D,), tl.float32)
    dscale = tl.zeros((BLOCK_D,), tl.float32)
    dgate = tl.zeros((BLOCK_D,), tl.float32)
    if GATED:
        gate = tl.load(gate_ptr + batch * gate_stride_b + segment * gate_stride_s + dims, mask=inside, other=0.0)
        gate = gate.to(tl.float32)
    for step in tl.range(0, last - first, num_stages=STAGES):
        wide = (first + step).to(tl.int64)
        out = (batch * length + wide) * width + dims
        dy = tl.load(dy_ptr + batch * dy_stride_b + wide * dy_stride_l + dims, mask=inside, other=0.0).to(tl.float32)
        stream = tl.load(stream_ptr + batch * s_stride_b + wide * s_stride_l + dims, mask=inside, other=0.0)
        mean = tl.load(mean_ptr + batch * length + wide)
        rstd = tl.load(rstd_ptr + batch * length + wide)
        # Lanes beyond the width hold no zero here, but every use is multiplied by dy, which is zero there.
        normed = (stream.to(tl.float32) - mean) * rstd
        dshift += dy
        dscale += dy * normed
        dnormed = dy * scale
        average = tl.sum(dnormed, axis=0) / width
        along = tl.sum(dnormed * normed, axis=0) / width
        dstream = (dnormed - average - normed * along) * rstd
        if HAS_DSTREAM:
            given = tl.load(dstream_ptr + batch * ds_stride_b + wide * ds_stride_l + dims, mask=inside, other=0.0)
            dstream += given.to(tl.float32)
        tl.store(dresidual_ptr + out, dstream.to(dresidual_ptr.dtype.element_ty), mask=inside)
        if GATED:
            x = tl.load(x_ptr + batch * x_stride_b + wide * x_stride_l + dims, mask=inside, other=0.0).to(tl.float32)
            dgate += dstream * x
            tl.store(dx_ptr + out, (dstream * gate).to(dx_ptr.dtype.element_ty), mask=inside)
    row_of_sums = (batch * tl.num_programs(0) + tl.program_id(0)) * width + dims
    plane = tl.num_programs(1).to(tl.int64) * tl.num_programs(0) * width
    tl.store(partial_ptr + row_of_sums, dshift, mask=inside)
    tl.store(partial_ptr + plane + row_of_sums, dscale, mask=inside)
    if GATED:
        tl.store(partial_ptr + 2 * plane + row_of_sums, dgate, mask=inside)


def _run_forward(
    residual: Tensor | None, x: Tensor, gate: Tensor | None, shift: Tensor, scale: Tensor, stream: Tensor | None,
    segments: list[int], eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    require_device(x)
    x, shift, scale = unit_stride(x), unit_stride(shift), unit_stride(scale)
    y = x.new_empty(x.shape, dtype=x.dtype if stream is None else stream.dtype)
    mean = x.new_empty(x.shape[:2], dtype=torch.float32)
    rstd = torch.empty_like(mean)
    # Without a residual the pointers are never followed.
    residual = x if residual is None else unit_stride(residual)
    gate = shift if gate is None else unit_stride(gate)
    block, warps = row_block(x.shape[2])
    launch(
        forward_kernel, (num_chunks(segments, FORWARD_ROWS), x.shape[0]), x,
        residual, x, gate, shift, scale, y if stream is None else stream, y, mean, rstd,
        *residual.stride()[:2], *x.stride()[:2], *gate.stride()[:2], *shift.stride()[:2], *scale.stride()[:2],
        segment_ends(segments), x.shape[1], x.shape[2], eps,
        GATED=stream is not None, ROWS=FORWARD_ROWS, BLOCK_D=block, num_warps=warps,
    )  # fmt: skip
    return y, mean, rstd


def _run_backward(
    dstream: Tensor | None, dy: Tensor, stream: Tensor, x: Tensor | None, gate: Tensor | None, scale: Tensor,
    mean: Tensor, rstd: Tensor, dresidual: Tensor, dx: Tensor | None, segments: list[int],
) -> Tensor:  # fmt: skip
    require_device(dy)
    gated = dx is not None
    dy, stream, scale = unit_stride(dy), unit_stride(stream), unit_stride(scale)
    given = dy if dstream is None else unit_stride(dstream)
    x = stream if x is None else unit_stride(x)
    gate = scale if gate is None else unit_stride(gate)
    batch, length, width = stream.shape
    rows = backward_rows(batch, segments, looping_programs(x))
    chunks = num_chunks(segments, rows)
    partial = mean.new_empty((3 if gated else 2, batch, chunks, width))
    block, warps = row_block(width)
    launch(
        backward_kernel, (chunks, batch), dy,
        given, dy, stream, x, gate, scale, mean, rstd, dresidual, dresidual if dx is None else dx, partial,
        *given.stride()[:2], *dy.stride()[:2], *stream.stride()[:2], *x.stride()[:2],
        *gate.stride()[:2], *scale.stride()[:2], segment_ends(segments), rows, length, width,
        GATED=gated, HAS_DSTREAM=dstream is not None, BLOCK_D=block,
        STAGES=PREFETCH if gated else PREFETCH_ALONE, num_warps=warps,
    )  # fmt: skip
    return sum_chunks(partial, segments, rows)


@torch.library.custom_op("omnihuman::modulated_norm", mutates_args=())
def _forward(x: Tensor, shift: Tensor, scale: Tensor, segments: list[int], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return _run_forward(None, x, None, shift, scale, None, segments, eps)


@_forward.register_fake
def _empty_forward(
    x: Tensor, shift: Tensor, scale: Tensor, segments: list[int], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.new_empty(x.shape[:2], dtype=torch.float32)
    return x.new_empty(x.shape), mean, torch.empty_like(mean)


@torch.library.custom_op("omnihuman::modulated_norm_backward", mutates_args=())
def _backward(
    dy: Tensor, x: Tensor, shift: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor, segments: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    dx = x.new_empty(x.shape)
    sums = _run_backward(None, dy, x, None, None, scale, mean, rstd, dx, None, segments)
    return dx, sums[0].to(shift.dtype, copy=True), sums[1].to(scale.dtype, copy=True)


@_backward.register_fake
def _empty_backward(
    dy: Tensor, x: Tensor, shift: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor, segments: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), shift.new_empty(shift.shape), scale.new_empty(scale.shape)


def _setup(ctx, inputs, output) -> None:
    x, shift, scale, ctx.segments, _ = inputs
    ctx.save_for_backward(x, shift, scale, output[1], output[2])
    # Otherwise autograd writes zeros for mean and rstd, which nobody differentiates.
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dy, _dmean, _drstd):
    return (*_backward(dy, *ctx.saved_tensors, ctx.segments), None, None)


_forward.register_autograd(_differentiate, setup_context=_setup)


@torch.library.custom_op("omnihuman::residual_modulated_norm", mutates_args=())
def _residual_forward(
    residual: Tensor, x: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, segments: list[int], eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    stream = x.new_empty(x.shape, dtype=torch.promote_types(residual.dtype, x.dtype))
    return stream, *_run_forward(residual, x, gate, shift, scale, stream, segments, eps)


@_residual_forward.register_fake
def _empty_residual_forward(
    residual: Tensor, x: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, segments: list[int], eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    stream = x.new_empty(x.shape, dtype=torch.promote_types(residual.dtype, x.dtype))
    mean = x.new_empty(x.shape[:2], dtype=torch.float32)
    return stream, torch.empty_like(stream), mean, torch.empty_like(mean)


@torch.library.custom_op("omnihuman::residual_modulated_norm_backward", mutates_args=())
def _residual_backward(
    dstream: Tensor | None, dy: Tensor, stream: Tensor, x: Tensor, gate: Tensor, shift: Tensor, scale: Tensor,
    mean: Tensor, rstd: Tensor, segments: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dresidual, dx = stream.new_empty(stream.shape), x.new_empty(x.shape)
    sums = _run_backward(dstream, dy, stream, x, gate, scale, mean, rstd, dresidual, dx, segments)
    dshift, dscale, dgate = (
        part.to(like.dtype, copy=True) for part, like in zip(sums, (shift, scale, gate), strict=True)
    )
    return dresidual, dx, dgate, dshift, dscale


@_residual_backward.register_fake
def _empty_residual_backward(
    dstream: Tensor | None, dy: Tensor, stream: Tensor, x: Tensor, gate: Tensor, shift: Tensor, scale: Tensor,
    mean: Tensor, rstd: Tensor, segments: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dgate, dshift, dscale = (part.new_empty(part.shape) for part in (gate, shift, scale))
    return stream.new_empty(stream.shape), x.new_empty(x.shape), dgate, dshift, dscale


def _residual_setup(ctx, inputs, output) -> None:
    residual, x, gate, shift, scale, ctx.segments, _ = inputs
    ctx.residual_dtype = residual.dtype
    ctx.save_for_backward(output[0], x, gate, shift, scale, output[2], output[3])
    ctx.set_materialize_grads(False)


def _residual_differentiate(ctx, dstream, dy, _dmean, _drstd):
    # Read once: under activation checkpointing the second time is an error.
    stream, *others = ctx.saved_tensors
    dy = torch.zeros_like(stream) if dy is None else dy
    dresidual, *rest = _residual_backward(dstream, dy, stream, *others, ctx.segments)
    return dresidual.to(ctx.residual_dtype), *rest, None, None


_residual_forward.register_autograd(_residual_differentiate, setup_context=_residual_setup)


def _check(x: Tensor, segments: tuple[int, ...], **modulations: Tensor) -> None:
    if x.ndim != 3 or not x.shape[2]:
        raise ValueError(f"x must have shape (B, L, D) with D > 0; got {tuple(x.shape)}")
    check_segments(segments, x.shape[1])
    expected = (x.shape[0], len(segments), x.shape[2])
    for name, modulation in modulations.items():
        if modulation.shape != expected:
            raise ValueError(f"{name} must have shape {expected}; got {tuple(modulation.shape)}")


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, *, segments: tuple[int, ...], eps: float) -> Tensor:
    """``LayerNorm(x) * (1 + scale) + shift``, per segment, statistics in float32.

    Args:
        x: ``(B, L, D)``.
        shift: ``(B, len(segments), D)``.
        scale: ``(B, len(segments), D)``.
        segments: Length of each segment, in order; they add up to L.
        eps: Added to the variance, positive.

    Returns:
        ``(B, L, D)``, contiguous, in the type of ``x``.

    Raises:
        ValueError: A shape does not fit, or the tensors are not on a CUDA device.
    """
    _check(x, segments, shift=shift, scale=scale)
    return _forward(x, shift, scale, list(segments), eps)[0]


def residual_modulated_norm(
    residual: Tensor, x: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, *, segments: tuple[int, ...], eps: float
) -> tuple[Tensor, Tensor]:
    """``residual + gate * x`` and its modulated norm, per segment.

    Args:
        residual: ``(B, L, D)``.
        x: ``(B, L, D)``.
        gate: ``(B, len(segments), D)``.
        shift: ``(B, len(segments), D)``.
        scale: ``(B, len(segments), D)``.
        segments: Length of each segment, in order; they add up to L.
        eps: Added to the variance, positive.

    Returns:
        The new residual stream and its norm, ``(B, L, D)``, contiguous, in the wider of their types.

    Raises:
        ValueError: A shape does not fit, or the tensors are not on a CUDA device.
    """
    if residual.shape != x.shape:
        raise ValueError(
            f"residual and x must have one shape (B, L, D); got {tuple(residual.shape)} and {tuple(x.shape)}"
        )
    _check(x, segments, gate=gate, shift=shift, scale=scale)
    stream, y, _, _ = _residual_forward(residual, x, gate, shift, scale, list(segments), eps)
    return stream, y
