r"""RMSNorm of q and k per head and rotary embedding, in one pass over both.

.. math::
    n = w \odot x / \sqrt{\mathrm{mean}(x^2) + \epsilon}, \qquad
    y_{2i} = n_{2i} c_i - n_{2i+1} s_i, \quad y_{2i+1} = n_{2i} s_i + n_{2i+1} c_i

The positions live in the tables alone: a reference token has the temporal part of its angles at zero, a text token has
``cos = 1, sin = 0``. Streams with weights of their own lie side by side in one sequence; each run of tokens has its
weights. Backward needs the raw q and k and one inverse norm a head; the rotated copies are not kept.

Traffic for a token of width ``h = N K`` in 2-byte numbers: forward ``8 h + 4 K`` bytes (read and write q and k,
read the tables once for all heads), backward ``12 h + 4 K``. About 10 flops a number forward, 20 backward: bound by
memory. Eager reference: ``omnihuman_core.ops``.
"""

# Triton functions take blocks and pointers, for which Python has no types, and custom ops return Any.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-any-return, type-arg, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnihuman_kernels._launch import LENGTHS, launch, looping_programs, require_device, unit_stride
from omnihuman_kernels._segments import check_segments, segment_ends

HeadWeight = Tensor | tuple[Tensor, ...]

# Numbers one program holds: eight 128-wide heads for four warps is what makes 128-bit loads and stores.
ELEMENTS = 1024

# Tiles in flight in backward, through shared memory: four programs of four warps on a multiprocessor hide few loads.
PREFETCH = 2

# Heads in all whose numbers, up to the end of the last tile, fit 32 bits; so must the places in a table, as wider ones
# cost registers that some compilers spill.
MOST_ROWS = 2**31 - ELEMENTS


@triton.jit
def _rows(tile, num_rows, num_heads, length, HEADS: tl.constexpr):
    """Batch item, position and head of each row of a tile; the divisions stay in 32 bits, where they are cheap."""
    row = tile * HEADS + tl.arange(0, HEADS)
    token = row // num_heads
    batch = token // length
    return row, batch, token - batch * length, row - token * num_heads, row < num_rows


@triton.jit
def _start(batch, position, head, stride_b, stride_l, stride_n):
    return batch.to(tl.int64) * stride_b + position.to(tl.int64) * stride_l + head.to(tl.int64) * stride_n


@triton.jit
def _weight_of(pointers, ends, position, HEAD_DIM: tl.constexpr):
    """Weight of each row of a tile, ``(1, K)`` where all rows have the same."""
    dims = tl.arange(0, HEAD_DIM)
    weight = tl.load(pointers[0] + dims).to(tl.float32)[None, :]
    for index in tl.static_range(1, len(ends)):
        later = tl.load(pointers[index] + dims).to(tl.float32)
        weight = tl.where((position >= ends[index - 1])[:, None], later[None, :], weight)
    return weight


@triton.jit
def _normalise(x, weight, eps, HEAD_DIM: tl.constexpr):
    rstd = tl.rsqrt(tl.sum(x * x, axis=1) / HEAD_DIM + eps)
    return x * rstd[:, None] * weight, rstd


@triton.jit
def _forward_one(
    x_ptr, y_ptr, rstd_ptr, weight, cos, sin, row, start, valid, eps, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr
):
    dims = tl.arange(0, HEAD_DIM)
    x = tl.load(x_ptr + start[:, None] + dims[None, :], mask=valid[:, None], other=0.0).to(tl.float32)
    normed, rstd = _normalise(x, weight, eps, HEAD_DIM)
    even, odd = tl.split(tl.reshape(normed, (HEADS, HEAD_DIM // 2, 2)))
    y = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (HEADS, HEAD_DIM))
    tl.store(
        y_ptr + row.to(tl.int64)[:, None] * HEAD_DIM + dims[None, :], y.to(y_ptr.dtype.element_ty), mask=valid[:, None]
    )
    tl.store(rstd_ptr + row, rstd, mask=valid)


@triton.jit(do_not_specialize=LENGTHS)
def forward_kernel(
    q_ptr, k_ptr, q_weight_ptrs, k_weight_ptrs, cos_ptr, sin_ptr, q_out_ptr, k_out_ptr, q_rstd_ptr, k_rstd_ptr,
    q_stride_b, q_stride_l, q_stride_n, k_stride_b, k_stride_l, k_stride_n,
    ends, num_rows, length, num_heads, eps,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """A tile of heads of q and the same of k."""
    tile = tl.program_id(0)
    pairs = tl.arange(0, HEAD_DIM // 2)
    row, batch, position, head, valid = _rows(tile, num_rows, num_heads, length, HEADS)
    q_start = _start(batch, position, head, q_stride_b, q_stride_l, q_stride_n)
    k_start = _start(batch, position, head, k_stride_b, k_stride_l, k_stride_n)
    table = position[:, None] * (HEAD_DIM // 2) + pairs[None, :]
    cos = tl.load(cos_ptr + table, mask=valid[:, None], other=0.0)
    sin = tl.load(sin_ptr + table, mask=valid[:, None], other=0.0)
    q_weight = _weight_of(q_weight_ptrs, ends, position, HEAD_DIM)
    k_weight = _weight_of(k_weight_ptrs, ends, position, HEAD_DIM)
    _forward_one(q_ptr, q_out_ptr, q_rstd_ptr, q_weight, cos, sin, row, q_start, valid, eps, HEADS, HEAD_DIM)
    _forward_one(k_ptr, k_out_ptr, k_rstd_ptr, k_weight, cos, sin, row, k_start, valid, eps, HEADS, HEAD_DIM)


@triton.jit
def _backward_one(
    dy_ptr, x_ptr, rstd_ptr, dx_ptr, weight, dweight, ends, cos, sin, row, position, dy_start, x_start, valid,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """Writes dx; returns ``dweight (SLOTS, K)`` with what the tile adds to the weight of each segment."""
    dims = tl.arange(0, HEAD_DIM)
    dy = tl.load(dy_ptr + dy_start[:, None] + dims[None, :], mask=valid[:, None], other=0.0).to(tl.float32)
    x = tl.load(x_ptr + x_start[:, None] + dims[None, :], mask=valid[:, None], other=0.0).to(tl.float32)
    rstd = tl.load(rstd_ptr + row, mask=valid, other=0.0)
    even, odd = tl.split(tl.reshape(dy, (HEADS, HEAD_DIM // 2, 2)))
    # The rotation is orthogonal, so its transpose turns back.
    dn = tl.reshape(tl.join(even * cos + odd * sin, odd * cos - even * sin), (HEADS, HEAD_DIM))
    normed = x * rstd[:, None]
    weighted = dn * weight
    dx = (weighted - normed * (tl.sum(weighted * normed, axis=1) / HEAD_DIM)[:, None]) * rstd[:, None]
    tl.store(
        dx_ptr + row.to(tl.int64)[:, None] * HEAD_DIM + dims[None, :],
        dx.to(dx_ptr.dtype.element_ty),
        mask=valid[:, None],
    )
    along = dn * normed
    if SLOTS == 1:
        dweight += tl.sum(along, axis=0)[None, :]
    else:
        begin = 0
        for index in tl.static_range(len(ends)):
            inside = (position >= begin) & (position < ends[index])
            added = tl.sum(tl.where(inside[:, None], along, 0.0), axis=0)
            dweight += tl.where((tl.arange(0, SLOTS) == index)[:, None], added[None, :], 0.0)
            begin = ends[index]
    return dweight


@triton.jit(do_not_specialize=LENGTHS)
def backward_kernel(
    dq_out_ptr, dk_out_ptr, q_ptr, k_ptr, q_weight_ptrs, k_weight_ptrs, cos_ptr, sin_ptr, q_rstd_ptr, k_rstd_ptr,
    dq_ptr, dk_ptr, dweight_ptr,
    dqo_stride_b, dqo_stride_l, dqo_stride_n, dko_stride_b, dko_stride_l, dko_stride_n,
    q_stride_b, q_stride_l, q_stride_n, k_stride_b, k_stride_l, k_stride_n,
    ends, num_rows, length, num_heads, num_tiles,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, SLOTS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Tiles of heads of q and k, and their part of the weights' gradients."""
    program = tl.program_id(0)
    dims = tl.arange(0, HEAD_DIM)
    pairs = tl.arange(0, HEAD_DIM // 2)
    slots = tl.arange(0, SLOTS)
    dq_weight = tl.zeros((SLOTS, HEAD_DIM), tl.float32)
    dk_weight = tl.zeros((SLOTS, HEAD_DIM), tl.float32)
    for tile in tl.range(program, num_tiles, tl.num_programs(0), num_stages=STAGES):
        row, batch, position, head, valid = _rows(tile, num_rows, num_heads, length, HEADS)
        q_weight = _weight_of(q_weight_ptrs, ends, position, HEAD_DIM)
        k_weight = _weight_of(k_weight_ptrs, ends, position, HEAD_DIM)
        q_start = _start(batch, position, head, q_stride_b, q_stride_l, q_stride_n)
        k_start = _start(batch, position, head, k_stride_b, k_stride_l, k_stride_n)
        dq_start = _start(batch, position, head, dqo_stride_b, dqo_stride_l, dqo_stride_n)
        dk_start = _start(batch, position, head, dko_stride_b, dko_stride_l, dko_stride_n)
        table = position[:, None] * (HEAD_DIM // 2) + pairs[None, :]
        cos = tl.load(cos_ptr + table, mask=valid[:, None], other=0.0)
        sin = tl.load(sin_ptr + table, mask=valid[:, None], other=0.0)
        dq_weight = _backward_one(
            dq_out_ptr, q_ptr, q_rstd_ptr, dq_ptr, q_weight, dq_weight, ends, cos, sin, row, position, dq_start,
            q_start, valid, HEADS, HEAD_DIM, SLOTS,
        )  # fmt: skip
        dk_weight = _backward_one(
            dk_out_ptr, k_ptr, k_rstd_ptr, dk_ptr, k_weight, dk_weight, ends, cos, sin, row, position, dk_start,
            k_start, valid, HEADS, HEAD_DIM, SLOTS,
        )  # fmt: skip
    # One block a program and a sum afterwards: the same bits on every run, which atomics would not give.
    out = dweight_ptr + (program * 2 * len(ends) + slots[:, None]) * HEAD_DIM + dims[None, :]
    tl.store(out, dq_weight, mask=(slots < len(ends))[:, None])
    tl.store(out + len(ends) * HEAD_DIM, dk_weight, mask=(slots < len(ends))[:, None])


def _check(
    q: Tensor, k: Tensor, q_weight: HeadWeight, k_weight: HeadWeight, cos: Tensor, sin: Tensor,
    segments: tuple[int, ...] | None,
) -> None:  # fmt: skip
    if q.ndim != 4 or k.shape != q.shape or k.dtype != q.dtype:
        raise ValueError(
            "q and k must have one shape (B, L, N, K) and dtype; "
            f"got {tuple(q.shape)} {q.dtype} and {tuple(k.shape)} {k.dtype}"
        )
    length, head_dim = q.shape[1], q.shape[3]
    if q.shape[:3].numel() > MOST_ROWS:
        raise ValueError(f"q has {q.shape[:3].numel()} heads in all; split the batch to {MOST_ROWS} or fewer")
    if length * head_dim // 2 > MOST_ROWS:
        raise ValueError(f"q has {length} tokens; split the sequence to {2 * MOST_ROWS // head_dim} or fewer")
    if head_dim < 2 or head_dim & (head_dim - 1):
        raise ValueError(f"head dim must be a power of two of at least 2; got {head_dim}")
    if segments is not None:
        check_segments(segments, length)
    for name, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
        if isinstance(weight, Tensor) != (segments is None):
            raise ValueError(f"{name} must be one tensor without segments, and a tuple of tensors with them")
        rows = (weight,) if isinstance(weight, Tensor) else weight
        if segments is not None and len(rows) != len(segments):
            raise ValueError(f"{name} must have a weight for each of the {len(segments)} segments; got {len(rows)}")
        for row in rows:
            if row.shape != (head_dim,):
                raise ValueError(f"{name} must have shape ({head_dim},); got {tuple(row.shape)}")
    for name, table in (("cos", cos), ("sin", sin)):
        if table.shape != (length, head_dim // 2) or table.dtype != torch.float32:
            raise ValueError(
                f"{name} must be float32 of shape ({length}, {head_dim // 2}); got {table.dtype} {tuple(table.shape)}"
            )


def _tiling(q: Tensor) -> tuple[int, int]:
    heads = max(1, ELEMENTS // q.shape[3])
    return heads, triton.cdiv(q.shape[:3].numel(), heads)


@torch.library.custom_op("omnihuman::qk_norm_rope", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, q_weights: list[Tensor], k_weights: list[Tensor], cos: Tensor, sin: Tensor,
    segments: list[int], eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    require_device(q)
    q, k, cos, sin = unit_stride(q), unit_stride(k), cos.contiguous(), sin.contiguous()
    q_weights, k_weights = ([unit_stride(w) for w in ws] for ws in (q_weights, k_weights))
    q_out, k_out, q_rstd, k_rstd = _empty_forward(q, k, q_weights, k_weights, cos, sin, segments, eps)
    heads, tiles = _tiling(q)
    launch(
        forward_kernel, (tiles,), q,
        q, k, tuple(q_weights), tuple(k_weights), cos, sin, q_out, k_out, q_rstd, k_rstd,
        *q.stride()[:3], *k.stride()[:3], segment_ends(segments), q.shape[:3].numel(), q.shape[1], q.shape[2], eps,
        HEADS=heads, HEAD_DIM=q.shape[3], num_warps=4,
    )  # fmt: skip
    return q_out, k_out, q_rstd, k_rstd


@_forward.register_fake
def _empty_forward(
    q: Tensor, k: Tensor, q_weights: list[Tensor], k_weights: list[Tensor], cos: Tensor, sin: Tensor,
    segments: list[int], eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    rstd = q.new_empty(q.shape[:3], dtype=torch.float32)
    return q.new_empty(q.shape), q.new_empty(q.shape), rstd, torch.empty_like(rstd)


@torch.library.custom_op("omnihuman::qk_norm_rope_backward", mutates_args=())
def _backward(
    dq_out: Tensor, dk_out: Tensor, q: Tensor, k: Tensor, q_weights: list[Tensor], k_weights: list[Tensor],
    cos: Tensor, sin: Tensor, q_rstd: Tensor, k_rstd: Tensor, segments: list[int],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    require_device(q)
    dq_out, dk_out, q, k = unit_stride(dq_out), unit_stride(dk_out), unit_stride(q), unit_stride(k)
    cos, sin = cos.contiguous(), sin.contiguous()
    q_weights, k_weights = ([unit_stride(w) for w in ws] for ws in (q_weights, k_weights))
    heads, tiles = _tiling(q)
    programs = min(tiles, looping_programs(q))
    dq, dk = q.new_empty(q.shape), q.new_empty(q.shape)
    dweight = q.new_empty((programs, 2, len(segments), q.shape[3]), dtype=torch.float32)
    launch(
        backward_kernel, (programs,), q,
        dq_out, dk_out, q, k, tuple(q_weights), tuple(k_weights), cos, sin, q_rstd, k_rstd, dq, dk, dweight,
        *dq_out.stride()[:3], *dk_out.stride()[:3], *q.stride()[:3], *k.stride()[:3],
        segment_ends(segments), q.shape[:3].numel(), q.shape[1], q.shape[2], tiles,
        HEADS=heads, HEAD_DIM=q.shape[3], SLOTS=triton.next_power_of_2(len(segments)), STAGES=PREFETCH, num_warps=4,
    )  # fmt: skip
    return dq, dk, dweight.sum(0)


@_backward.register_fake
def _empty_backward(
    dq_out: Tensor, dk_out: Tensor, q: Tensor, k: Tensor, q_weights: list[Tensor], k_weights: list[Tensor],
    cos: Tensor, sin: Tensor, q_rstd: Tensor, k_rstd: Tensor, segments: list[int],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dweight = q.new_empty((2, len(segments), q.shape[3]), dtype=torch.float32)
    return q.new_empty(q.shape), q.new_empty(q.shape), dweight


def _setup(ctx, inputs, output) -> None:
    q, k, q_weights, k_weights, cos, sin, ctx.segments, _ = inputs
    ctx.save_for_backward(q, k, *q_weights, *k_weights, cos, sin, output[2], output[3])
    # Otherwise autograd writes zeros for the inverse norms, which nobody differentiates.
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dq_out, dk_out, _dq_rstd, _dk_rstd):
    q, k, *weights, cos, sin, q_rstd, k_rstd = ctx.saved_tensors
    half = len(ctx.segments)
    dq_out = torch.zeros_like(q) if dq_out is None else dq_out
    dk_out = torch.zeros_like(k) if dk_out is None else dk_out
    dq, dk, dweight = _backward(
        dq_out, dk_out, q, k, weights[:half], weights[half:], cos, sin, q_rstd, k_rstd, ctx.segments
    )
    dq_weights, dk_weights = (
        [row.to(like.dtype) for row, like in zip(rows, weights, strict=False)] for rows in dweight.unbind()
    )
    return dq, dk, dq_weights, dk_weights, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_setup)


def qk_norm_rope(
    q: Tensor, k: Tensor, q_weight: HeadWeight, k_weight: HeadWeight, cos: Tensor, sin: Tensor, *,
    eps: float, segments: tuple[int, ...] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Normalise and rotate q and k.

    Args:
        q: ``(B, L, N, K)``, any strides with a contiguous last dimension (a slice of a packed projection is fine).
        k: Like ``q``.
        q_weight: ``(K,)``, or a tuple of them, one a segment.
        k_weight: Like ``q_weight``.
        cos: ``(L, K / 2)`` float32, 1 for a token without a position.
        sin: ``(L, K / 2)`` float32, 0 for a token without a position.
        eps: Added to the mean square, positive.
        segments: With tuples of weights, the length of each segment, in order; they add up to L.

    Returns:
        q and k, contiguous ``(B, L, N, K)``.

    Raises:
        ValueError: A shape or dtype does not fit, or the tensors are not on a CUDA device.
    """
    _check(q, k, q_weight, k_weight, cos, sin, segments)
    q_weights, k_weights = ([w] if isinstance(w, Tensor) else list(w) for w in (q_weight, k_weight))
    runs = [q.shape[1]] if segments is None else list(segments)
    q_out, k_out, _, _ = _forward(q, k, q_weights, k_weights, cos, sin, runs, eps)
    return q_out, k_out
