r"""Non-causal flash attention over a packed sequence: dense, with a key mask, or several documents side by side.

.. math::
    o_i = \sum_j \mathrm{softmax}_j\!\left(\frac{q_i \cdot k_j}{\sqrt K}\right) v_j

Forward keeps the logarithm (base 2) of each row's sum; backward computes the weights again from it. Two passes, one for
dq and one for dk and dv, form the weights twice, with seven products, and give the same bits on every run. Where the
tables have a tile for it (Hopper, head dim up to 64) and torch is not asked for deterministic algorithms, one pass over
the keys makes all gradients with five products; it adds to dq in memory, in float32 and in no fixed order.

``4 N L M K`` flops forward, ``10 N L M K`` backward in one pass, ``14 N L M K`` in two: bound by the matrix units from
a few hundred tokens. A query of width ``h`` moves ``8 h`` bytes forward in 2-byte numbers. The pass over the keys adds
``4 L M N K / 128`` bytes to dq, in the second-level cache.

On Hopper loads go through tensor-memory descriptors built on the device, and a producer group of warps runs ahead of
the consumers; a document's end is the descriptor's end, so tails read zeros. A peeled tail tile would silently switch
the producer off, so every tile is masked inside the loop. Eager reference: ``omnihuman_core.ops``.
"""

# Triton functions take blocks and pointers, for which Python has no types, and custom ops return Any.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-any-return, type-arg, no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from omnihuman_kernels._launch import (
    Tile,
    attention_tile,
    describable,
    interpreting,
    launch,
    one_pass,
    require_device,
    unit_stride,
)

HEAD_DIMS = (16, 32, 64, 128)
LOG2_E = 1.4426950408889634

# Queries of a program that prepares the backward pass.
PREPARED_ROWS = 32


@triton.jit
def _document(cu_ptr, batch, length, VARLEN: tl.constexpr):
    """Start and length of a batch item, or of a document of the packed sequence."""
    if VARLEN:
        start = tl.load(cu_ptr + batch)
        length = tl.load(cu_ptr + batch + 1) - start
        # An empty document at the end starts beyond the tensor, where a descriptor must not point.
        return tl.where(length > 0, start, 0).to(tl.int64), length
    else:
        return tl.zeros((), tl.int64), length


@triton.jit
def _pointer(ptr, batch, head, start, stride_b, stride_l, stride_n, VARLEN: tl.constexpr):
    """First row of a head; documents of a packed sequence are rows of one batch item."""
    if VARLEN:
        return ptr + start * stride_l + head.to(tl.int64) * stride_n
    else:
        return ptr + batch.to(tl.int64) * stride_b + head.to(tl.int64) * stride_n


@triton.jit
def _load(
    desc,
    ptr,
    first,
    length,
    stride_l,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TMA: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Rows ``first`` to ``first + ROWS`` of a head, zeros beyond its end."""
    if TMA:
        tile = desc.load([first, 0])
    else:
        rows = first + tl.arange(0, ROWS)
        at = ptr + rows.to(tl.int64)[:, None] * stride_l + tl.arange(0, HEAD_DIM)[None, :]
        tile = tl.load(at, mask=(rows < length)[:, None], other=0.0)
    if UPCAST:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def _describe(ptr, length, stride_l, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, TMA: tl.constexpr):
    if TMA:
        # A descriptor without rows is not valid; nothing of the row that it then has is stored.
        return tl.make_tensor_descriptor(
            ptr, shape=[tl.maximum(length, 1), HEAD_DIM], strides=[stride_l, 1], block_shape=[ROWS, HEAD_DIM]
        )
    else:
        return ptr


@triton.jit
def _store(ptr, tile, first, length, stride_l, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr):
    rows = first + tl.arange(0, ROWS)
    at = ptr + rows.to(tl.int64)[:, None] * stride_l + tl.arange(0, HEAD_DIM)[None, :]
    tl.store(at, tile.to(ptr.dtype.element_ty), mask=(rows < length)[:, None])


@triton.jit
def forward_kernel(
    q_ptr, k_ptr, v_ptr, mask_ptr, cu_q_ptr, cu_k_ptr, out_ptr, lse_ptr,
    q_stride_b, q_stride_l, q_stride_n, k_stride_b, k_stride_l, k_stride_n, v_stride_b, v_stride_l, v_stride_n,
    o_stride_b, o_stride_l, lse_stride_b, lse_stride_n, mask_stride_b,
    len_q, len_k, num_heads, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, VARLEN: tl.constexpr, MASKED: tl.constexpr,
    TMA: tl.constexpr, WARP_SPECIALIZE: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """A tile of queries of one head against all keys."""
    first = tl.program_id(0) * BLOCK_M
    batch = tl.program_id(1) // num_heads
    head = tl.program_id(1) % num_heads
    q_from, len_q = _document(cu_q_ptr, batch, len_q, VARLEN)
    k_from, len_k = _document(cu_k_ptr, batch, len_k, VARLEN)
    q_start = _pointer(q_ptr, batch, head, q_from, q_stride_b, q_stride_l, q_stride_n, VARLEN)
    k_start = _pointer(k_ptr, batch, head, k_from, k_stride_b, k_stride_l, k_stride_n, VARLEN)
    v_start = _pointer(v_ptr, batch, head, k_from, v_stride_b, v_stride_l, v_stride_n, VARLEN)
    out_start = _pointer(out_ptr, batch, head, q_from, o_stride_b, o_stride_l, HEAD_DIM, VARLEN)
    lse_start = _pointer(lse_ptr, batch, head, q_from, lse_stride_b, 1, lse_stride_n, VARLEN)
    q_desc = _describe(q_start, len_q, q_stride_l, BLOCK_M, HEAD_DIM, TMA)
    k_desc = _describe(k_start, len_k, k_stride_l, BLOCK_N, HEAD_DIM, TMA)
    v_desc = _describe(v_start, len_k, v_stride_l, BLOCK_N, HEAD_DIM, TMA)
    q = _load(q_desc, q_start, first, len_q, q_stride_l, BLOCK_M, HEAD_DIM, TMA, UPCAST)

    best = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    out = tl.zeros((BLOCK_M, HEAD_DIM), tl.float32)
    # A program past the end of a short document has nothing to do; returning early would disturb the producer group.
    end = tl.where(first < len_q, len_k, 0)
    for start in tl.range(0, end, BLOCK_N, warp_specialize=WARP_SPECIALIZE):
        k = _load(k_desc, k_start, start, len_k, k_stride_l, BLOCK_N, HEAD_DIM, TMA, UPCAST)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        keys = start + tl.arange(0, BLOCK_N)
        counts = keys < len_k
        if MASKED:
            counts = counts & (tl.load(mask_ptr + batch * mask_stride_b + keys, mask=counts, other=0) != 0)
        scores = tl.where(counts[None, :], scores, float("-inf"))
        better = tl.maximum(best, tl.max(scores, axis=1))
        if MASKED:
            # A row may not have seen a key yet, and -inf - -inf is not a number.
            offset = tl.where(better == float("-inf"), 0.0, better)
        else:
            offset = better
        weights = tl.exp2(scores - offset[:, None])
        correction = tl.exp2(best - offset)
        total = total * correction + tl.sum(weights, axis=1)
        best = better
        out = out * correction[:, None]
        v = _load(v_desc, v_start, start, len_k, v_stride_l, BLOCK_N, HEAD_DIM, TMA, UPCAST)
        out = tl.dot(weights.to(v.dtype), v, out, input_precision=PRECISION)

    # A query without keys gives zeros.
    some = total > 0
    out = out / tl.where(some, total, 1.0)[:, None]
    _store(out_start, out, first, len_q, o_stride_l, BLOCK_M, HEAD_DIM)
    rows = first + tl.arange(0, BLOCK_M)
    tl.store(lse_start + rows, tl.where(some, best + tl.log2(tl.where(some, total, 1.0)), 0.0), mask=rows < len_q)


@triton.jit
def backward_q_kernel(
    do_ptr, out_ptr, q_ptr, k_ptr, v_ptr, mask_ptr, cu_q_ptr, cu_k_ptr, lse_ptr, delta_ptr, dq_ptr,
    do_stride_b, do_stride_l, do_stride_n, q_stride_b, q_stride_l, q_stride_n, k_stride_b, k_stride_l, k_stride_n,
    v_stride_b, v_stride_l, v_stride_n, o_stride_b, o_stride_l, lse_stride_b, lse_stride_n, mask_stride_b,
    len_q, len_k, num_heads, scale, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, VARLEN: tl.constexpr, MASKED: tl.constexpr,
    TMA: tl.constexpr, WARP_SPECIALIZE: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of queries, and the row sums of do * out."""
    first = tl.program_id(0) * BLOCK_M
    batch = tl.program_id(1) // num_heads
    head = tl.program_id(1) % num_heads
    q_from, len_q = _document(cu_q_ptr, batch, len_q, VARLEN)
    k_from, len_k = _document(cu_k_ptr, batch, len_k, VARLEN)
    do_start = _pointer(do_ptr, batch, head, q_from, do_stride_b, do_stride_l, do_stride_n, VARLEN)
    q_start = _pointer(q_ptr, batch, head, q_from, q_stride_b, q_stride_l, q_stride_n, VARLEN)
    k_start = _pointer(k_ptr, batch, head, k_from, k_stride_b, k_stride_l, k_stride_n, VARLEN)
    v_start = _pointer(v_ptr, batch, head, k_from, v_stride_b, v_stride_l, v_stride_n, VARLEN)
    out_start = _pointer(out_ptr, batch, head, q_from, o_stride_b, o_stride_l, HEAD_DIM, VARLEN)
    dq_start = _pointer(dq_ptr, batch, head, q_from, o_stride_b, o_stride_l, HEAD_DIM, VARLEN)
    lse_start = _pointer(lse_ptr, batch, head, q_from, lse_stride_b, 1, lse_stride_n, VARLEN)
    delta_start = _pointer(delta_ptr, batch, head, q_from, lse_stride_b, 1, lse_stride_n, VARLEN)
    k_desc = _describe(k_start, len_k, k_stride_l, BLOCK_N, HEAD_DIM, TMA)
    v_desc = _describe(v_start, len_k, v_stride_l, BLOCK_N, HEAD_DIM, TMA)
    # Through descriptors too, so that tiles that stay lie in shared memory instead of registers.
    q_desc = _describe(q_start, len_q, q_stride_l, BLOCK_M, HEAD_DIM, TMA)
    do_desc = _describe(do_start, len_q, do_stride_l, BLOCK_M, HEAD_DIM, TMA)
    q = _load(q_desc, q_start, first, len_q, q_stride_l, BLOCK_M, HEAD_DIM, TMA, UPCAST)
    do = _load(do_desc, do_start, first, len_q, do_stride_l, BLOCK_M, HEAD_DIM, TMA, UPCAST)
    out = _load(out_start, out_start, first, len_q, o_stride_l, BLOCK_M, HEAD_DIM, False, UPCAST)
    rows = first + tl.arange(0, BLOCK_M)
    delta = tl.sum(do.to(tl.float32) * out.to(tl.float32), axis=1)
    tl.store(delta_start + rows, delta, mask=rows < len_q)
    lse = tl.load(lse_start + rows, mask=rows < len_q, other=0.0)

    dq = tl.zeros((BLOCK_M, HEAD_DIM), tl.float32)
    end = tl.where(first < len_q, len_k, 0)
    for start in tl.range(0, end, BLOCK_N, warp_specialize=WARP_SPECIALIZE):
        k = _load(k_desc, k_start, start, len_k, k_stride_l, BLOCK_N, HEAD_DIM, TMA, UPCAST)
        v = _load(v_desc, v_start, start, len_k, v_stride_l, BLOCK_N, HEAD_DIM, TMA, UPCAST)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        keys = start + tl.arange(0, BLOCK_N)
        counts = keys < len_k
        if MASKED:
            counts = counts & (tl.load(mask_ptr + batch * mask_stride_b + keys, mask=counts, other=0) != 0)
        weights = tl.where(counts[None, :], tl.exp2(scores - lse[:, None]), 0.0)
        dweights = tl.dot(do.to(v.dtype), tl.trans(v), input_precision=PRECISION)
        dscores = weights * (dweights - delta[:, None])
        dq = tl.dot(dscores.to(k.dtype), k, dq, input_precision=PRECISION)
    _store(dq_start, dq * scale, first, len_q, o_stride_l, BLOCK_M, HEAD_DIM)


@triton.jit
def backward_kv_kernel(
    do_ptr, q_ptr, k_ptr, v_ptr, mask_ptr, cu_q_ptr, cu_k_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr,
    do_stride_b, do_stride_l, do_stride_n, q_stride_b, q_stride_l, q_stride_n, k_stride_b, k_stride_l, k_stride_n,
    v_stride_b, v_stride_l, v_stride_n, dk_stride_b, dk_stride_l, lse_stride_b, lse_stride_n, mask_stride_b,
    len_q, len_k, num_heads, scale, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, VARLEN: tl.constexpr, MASKED: tl.constexpr,
    TMA: tl.constexpr, WARP_SPECIALIZE: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and of its values."""
    first = tl.program_id(0) * BLOCK_N
    batch = tl.program_id(1) // num_heads
    head = tl.program_id(1) % num_heads
    q_from, len_q = _document(cu_q_ptr, batch, len_q, VARLEN)
    k_from, len_k = _document(cu_k_ptr, batch, len_k, VARLEN)
    do_start = _pointer(do_ptr, batch, head, q_from, do_stride_b, do_stride_l, do_stride_n, VARLEN)
    q_start = _pointer(q_ptr, batch, head, q_from, q_stride_b, q_stride_l, q_stride_n, VARLEN)
    k_start = _pointer(k_ptr, batch, head, k_from, k_stride_b, k_stride_l, k_stride_n, VARLEN)
    v_start = _pointer(v_ptr, batch, head, k_from, v_stride_b, v_stride_l, v_stride_n, VARLEN)
    dk_start = _pointer(dk_ptr, batch, head, k_from, dk_stride_b, dk_stride_l, HEAD_DIM, VARLEN)
    dv_start = _pointer(dv_ptr, batch, head, k_from, dk_stride_b, dk_stride_l, HEAD_DIM, VARLEN)
    lse_start = _pointer(lse_ptr, batch, head, q_from, lse_stride_b, 1, lse_stride_n, VARLEN)
    delta_start = _pointer(delta_ptr, batch, head, q_from, lse_stride_b, 1, lse_stride_n, VARLEN)
    q_desc = _describe(q_start, len_q, q_stride_l, BLOCK_M, HEAD_DIM, TMA)
    do_desc = _describe(do_start, len_q, do_stride_l, BLOCK_M, HEAD_DIM, TMA)
    # Through descriptors too, so that tiles that stay lie in shared memory instead of registers.
    k_desc = _describe(k_start, len_k, k_stride_l, BLOCK_N, HEAD_DIM, TMA)
    v_desc = _describe(v_start, len_k, v_stride_l, BLOCK_N, HEAD_DIM, TMA)
    k = _load(k_desc, k_start, first, len_k, k_stride_l, BLOCK_N, HEAD_DIM, TMA, UPCAST)
    v = _load(v_desc, v_start, first, len_k, v_stride_l, BLOCK_N, HEAD_DIM, TMA, UPCAST)
    # Keys past the end have k = 0 and rows of their own in dk and dv, which are not stored: only a mask needs care.
    if MASKED:
        keys = first + tl.arange(0, BLOCK_N)
        counts = tl.load(mask_ptr + batch * mask_stride_b + keys, mask=keys < len_k, other=0) != 0

    dk = tl.zeros((BLOCK_N, HEAD_DIM), tl.float32)
    dv = tl.zeros((BLOCK_N, HEAD_DIM), tl.float32)
    end = tl.where(first < len_k, len_q, 0)
    for start in tl.range(0, end, BLOCK_M, warp_specialize=WARP_SPECIALIZE):
        q = _load(q_desc, q_start, start, len_q, q_stride_l, BLOCK_M, HEAD_DIM, TMA, UPCAST)
        do = _load(do_desc, do_start, start, len_q, do_stride_l, BLOCK_M, HEAD_DIM, TMA, UPCAST)
        rows = start + tl.arange(0, BLOCK_M)
        # Rows past the end have q = do = 0 and get weight 1, which zero rows of do then leave without effect.
        lse = tl.load(lse_start + rows, mask=rows < len_q, other=0.0)
        delta = tl.load(delta_start + rows, mask=rows < len_q, other=0.0)
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale_log2
        weights = tl.exp2(scores - lse[None, :])
        if MASKED:
            weights = tl.where(counts[:, None], weights, 0.0)
        dv = tl.dot(weights.to(do.dtype), do, dv, input_precision=PRECISION)
        dweights = tl.dot(v, tl.trans(do), input_precision=PRECISION)
        dscores = weights * (dweights - delta[None, :])
        dk = tl.dot(dscores.to(q.dtype), q, dk, input_precision=PRECISION)
    _store(dk_start, dk * scale, first, len_k, dk_stride_l, BLOCK_N, HEAD_DIM)
    _store(dv_start, dv, first, len_k, dk_stride_l, BLOCK_N, HEAD_DIM)


@triton.jit
def prepare_kernel(
    do_ptr, out_ptr, delta_ptr, dq_ptr,
    do_stride_b, do_stride_l, do_stride_n, o_stride_b, o_stride_l, lse_stride_b, lse_stride_n, length, num_heads,
    HEAD_DIM: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Row sums of do * out, and zeros where the pass over the keys adds up dq."""
    first = tl.program_id(0) * ROWS
    batch = (tl.program_id(1) // num_heads).to(tl.int64)
    head = (tl.program_id(1) % num_heads).to(tl.int64)
    rows = first + tl.arange(0, ROWS)
    wide = rows.to(tl.int64)[:, None]
    dims = tl.arange(0, HEAD_DIM)[None, :]
    inside = (rows < length)[:, None]
    out_at = batch * o_stride_b + wide * o_stride_l + head * HEAD_DIM + dims
    do_at = batch * do_stride_b + wide * do_stride_l + head * do_stride_n + dims
    do = tl.load(do_ptr + do_at, mask=inside, other=0.0).to(tl.float32)
    out = tl.load(out_ptr + out_at, mask=inside, other=0.0).to(tl.float32)
    delta_at = batch * lse_stride_b + head * lse_stride_n + rows
    tl.store(delta_ptr + delta_at, tl.sum(do * out, axis=1), mask=rows < length)
    tl.store(dq_ptr + out_at, tl.zeros((ROWS, HEAD_DIM), tl.float32), mask=inside)


@triton.jit
def backward_kernel(
    do_ptr, q_ptr, k_ptr, v_ptr, mask_ptr, cu_q_ptr, cu_k_ptr, lse_ptr, delta_ptr, dq_ptr, dk_ptr, dv_ptr,
    do_stride_b, do_stride_l, do_stride_n, q_stride_b, q_stride_l, q_stride_n, k_stride_b, k_stride_l, k_stride_n,
    v_stride_b, v_stride_l, v_stride_n, dq_stride_b, dq_stride_l, dk_stride_b, dk_stride_l,
    lse_stride_b, lse_stride_n, mask_stride_b, len_q, len_k, num_heads, scale, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, VARLEN: tl.constexpr, MASKED: tl.constexpr,
    TMA: tl.constexpr, REDUCE: tl.constexpr, WARP_SPECIALIZE: tl.constexpr, PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and of its values, and what the tile adds to the gradient of every query."""
    first = tl.program_id(0) * BLOCK_N
    batch = tl.program_id(1) // num_heads
    head = tl.program_id(1) % num_heads
    q_from, len_q = _document(cu_q_ptr, batch, len_q, VARLEN)
    k_from, len_k = _document(cu_k_ptr, batch, len_k, VARLEN)
    do_start = _pointer(do_ptr, batch, head, q_from, do_stride_b, do_stride_l, do_stride_n, VARLEN)
    q_start = _pointer(q_ptr, batch, head, q_from, q_stride_b, q_stride_l, q_stride_n, VARLEN)
    k_start = _pointer(k_ptr, batch, head, k_from, k_stride_b, k_stride_l, k_stride_n, VARLEN)
    v_start = _pointer(v_ptr, batch, head, k_from, v_stride_b, v_stride_l, v_stride_n, VARLEN)
    dq_start = _pointer(dq_ptr, batch, head, q_from, dq_stride_b, dq_stride_l, HEAD_DIM, VARLEN)
    dk_start = _pointer(dk_ptr, batch, head, k_from, dk_stride_b, dk_stride_l, HEAD_DIM, VARLEN)
    dv_start = _pointer(dv_ptr, batch, head, k_from, dk_stride_b, dk_stride_l, HEAD_DIM, VARLEN)
    lse_start = _pointer(lse_ptr, batch, head, q_from, lse_stride_b, 1, lse_stride_n, VARLEN)
    delta_start = _pointer(delta_ptr, batch, head, q_from, lse_stride_b, 1, lse_stride_n, VARLEN)
    q_desc = _describe(q_start, len_q, q_stride_l, BLOCK_M, HEAD_DIM, TMA)
    do_desc = _describe(do_start, len_q, do_stride_l, BLOCK_M, HEAD_DIM, TMA)
    k_desc = _describe(k_start, len_k, k_stride_l, BLOCK_N, HEAD_DIM, TMA)
    v_desc = _describe(v_start, len_k, v_stride_l, BLOCK_N, HEAD_DIM, TMA)
    # Adding through a descriptor leaves the sums to the memory system, a row of a tile at a time.
    dq_desc = _describe(dq_start, len_q, dq_stride_l, BLOCK_M, HEAD_DIM, REDUCE)
    k = _load(k_desc, k_start, first, len_k, k_stride_l, BLOCK_N, HEAD_DIM, TMA, UPCAST)
    v = _load(v_desc, v_start, first, len_k, v_stride_l, BLOCK_N, HEAD_DIM, TMA, UPCAST)
    # Keys past the end are zeros: they add nothing to dq, and rows of their own in dk and dv are not stored.
    if MASKED:
        keys = first + tl.arange(0, BLOCK_N)
        counts = tl.load(mask_ptr + batch * mask_stride_b + keys, mask=keys < len_k, other=0) != 0

    dk = tl.zeros((BLOCK_N, HEAD_DIM), tl.float32)
    dv = tl.zeros((BLOCK_N, HEAD_DIM), tl.float32)
    end = tl.where(first < len_k, len_q, 0)
    for start in tl.range(0, end, BLOCK_M, warp_specialize=WARP_SPECIALIZE):
        q = _load(q_desc, q_start, start, len_q, q_stride_l, BLOCK_M, HEAD_DIM, TMA, UPCAST)
        do = _load(do_desc, do_start, start, len_q, do_stride_l, BLOCK_M, HEAD_DIM, TMA, UPCAST)
        rows = start + tl.arange(0, BLOCK_M)
        lse = tl.load(lse_start + rows, mask=rows < len_q, other=0.0)
        delta = tl.load(delta_start + rows, mask=rows < len_q, other=0.0)
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale_log2
        weights = tl.exp2(scores - lse[None, :])
        if MASKED:
            weights = tl.where(counts[:, None], weights, 0.0)
        dv = tl.dot(weights.to(do.dtype), do, dv, input_precision=PRECISION)
        dweights = tl.dot(v, tl.trans(do), input_precision=PRECISION)
        dscores = (weights * (dweights - delta[None, :])).to(q.dtype)
        dk = tl.dot(dscores, q, dk, input_precision=PRECISION)
        dq = tl.dot(tl.trans(dscores), k, input_precision=PRECISION) * scale
        if REDUCE:
            dq_desc.atomic_add([start, 0], dq)
        else:
            at = dq_start + rows.to(tl.int64)[:, None] * dq_stride_l + tl.arange(0, HEAD_DIM)[None, :]
            tl.atomic_add(at, dq, mask=(rows < len_q)[:, None], sem="relaxed")
    _store(dk_start, dk * scale, first, len_k, dk_stride_l, BLOCK_N, HEAD_DIM)
    _store(dv_start, dv, first, len_k, dk_stride_l, BLOCK_N, HEAD_DIM)


def _options(tile: Tile, q: Tensor, mask: Tensor | None, cu_q: Tensor | None) -> dict[str, Any]:
    return {
        "HEAD_DIM": q.shape[3],
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "VARLEN": cu_q is not None,
        "MASKED": mask is not None,
        "TMA": tile.tma,
        "WARP_SPECIALIZE": tile.warp_specialize,
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
        # The interpreter multiplies bfloat16 as if it were integers.
        "UPCAST": interpreting() and q.dtype == torch.bfloat16,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
        "descriptors": tile.tma,
    }


def _documents(q: Tensor, cu_q: Tensor | None) -> int:
    return q.shape[0] if cu_q is None else cu_q.shape[0] - 1


@torch.library.custom_op("omnihuman::joint_attention", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    cu_q: Tensor | None,
    cu_k: Tensor | None,
    max_q: int,
    max_k: int,
) -> tuple[Tensor, Tensor]:
    require_device(q)
    q, k, v = unit_stride(q), unit_stride(k), unit_stride(v)
    mask = None if mask is None else mask.contiguous()
    out, lse = _empty_forward(q, k, v, mask, cu_q, cu_k, max_q, max_k)
    kind = "forward" if mask is None else "forward_masked"
    tile = attention_tile(kind, q.shape[3], q, describe=describable(q, k, v))
    launch(
        forward_kernel, (triton.cdiv(max_q, tile.block_m), _documents(q, cu_q) * q.shape[2]), q,
        q, k, v, mask, cu_q, cu_k, out, lse,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:2], *lse.stride()[:2],
        0 if mask is None else mask.stride(0), max_q, max_k, q.shape[2], q.shape[3] ** -0.5 * LOG2_E,
        **_options(tile, q, mask, cu_q),
    )  # fmt: skip
    return out, lse


@_forward.register_fake
def _empty_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    cu_q: Tensor | None,
    cu_k: Tensor | None,
    max_q: int,
    max_k: int,
) -> tuple[Tensor, Tensor]:
    batch, length, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((batch, heads, length), dtype=torch.float32)


@torch.library.custom_op("omnihuman::joint_attention_backward", mutates_args=())
def _backward(
    do: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor,
    mask: Tensor | None, cu_q: Tensor | None, cu_k: Tensor | None, max_q: int, max_k: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    require_device(q)
    do, q, k, v = unit_stride(do), unit_stride(q), unit_stride(k), unit_stride(v)
    mask = None if mask is None else mask.contiguous()
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    delta = torch.empty_like(lse)
    head_dim, scale = q.shape[3], q.shape[3] ** -0.5
    programs = _documents(q, cu_q) * q.shape[2]
    strides = (*do.stride()[:3], *q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
    statistics = (*lse.stride()[:2], 0 if mask is None else mask.stride(0))
    sizes = (max_q, max_k, q.shape[2], scale, scale * LOG2_E)
    describe = describable(do, q, k, v)
    if one_pass(q, describe=describe):
        sums = torch.empty_like(dq, dtype=torch.float32)
        launch(
            prepare_kernel, (triton.cdiv(q.shape[1], PREPARED_ROWS), q.shape[0] * q.shape[2]), q,
            do, out, delta, sums, *do.stride()[:3], *out.stride()[:2], *lse.stride()[:2], q.shape[1], q.shape[2],
            HEAD_DIM=head_dim, ROWS=PREPARED_ROWS, num_warps=4,
        )  # fmt: skip
        tile = attention_tile("backward", head_dim, q, describe=describe)
        launch(
            backward_kernel, (triton.cdiv(max_k, tile.block_n), programs), q,
            do, q, k, v, mask, cu_q, cu_k, lse, delta, sums, dk, dv, *strides, *sums.stride()[:2], *dk.stride()[:2],
            *statistics, *sizes,
            # The interpreter knows no sums through descriptors.
            REDUCE=tile.tma and not interpreting(), **_options(tile, q, mask, cu_q),
        )  # fmt: skip
        return sums.to(q.dtype, copy=True), dk, dv
    # dq goes first: it writes the row sums of do * out, which dk and dv need.
    tile = attention_tile("backward_q", head_dim, q, describe=describe)
    launch(
        backward_q_kernel, (triton.cdiv(max_q, tile.block_m), programs), q,
        do, out, q, k, v, mask, cu_q, cu_k, lse, delta, dq, *strides, *dq.stride()[:2], *statistics, *sizes,
        **_options(tile, q, mask, cu_q),
    )  # fmt: skip
    tile = attention_tile("backward_kv", head_dim, q, describe=describe)
    launch(
        backward_kv_kernel, (triton.cdiv(max_k, tile.block_n), programs), q,
        do, q, k, v, mask, cu_q, cu_k, lse, delta, dk, dv, *strides, *dk.stride()[:2], *statistics, *sizes,
        **_options(tile, q, mask, cu_q),
    )  # fmt: skip
    return dq, dk, dv


@_backward.register_fake
def _empty_backward(
    do: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor,
    mask: Tensor | None, cu_q: Tensor | None, cu_k: Tensor | None, max_q: int, max_k: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup(ctx, inputs, output) -> None:
    *tensors, ctx.max_q, ctx.max_k = inputs
    ctx.save_for_backward(*output, *tensors)
    # Otherwise autograd writes zeros for the row sums, which nobody differentiates.
    ctx.set_materialize_grads(False)


def _differentiate(ctx, do, _dlse):
    return (*_backward(do, *ctx.saved_tensors, ctx.max_q, ctx.max_k), None, None, None, None, None)


_forward.register_autograd(_differentiate, setup_context=_setup)


@register_flop_formula(torch.ops.omnihuman.joint_attention)
def _forward_flops(q_shape, k_shape, *_args, **_kwargs) -> int:
    batch, length, heads, head_dim = q_shape
    return 4 * batch * heads * length * k_shape[1] * head_dim


@register_flop_formula(torch.ops.omnihuman.joint_attention_backward)
def _backward_flops(_do_shape, _out_shape, _lse_shape, q_shape, k_shape, *_args, **_kwargs) -> int:
    # As the literature counts: five products. In two passes the scores are formed twice.
    return _forward_flops(q_shape, k_shape) * 5 // 2


def _check(q: Tensor, k: Tensor, v: Tensor, rank: int, layout: str) -> None:
    if q.ndim != rank or k.shape != v.shape or k.ndim != rank or k.shape[-2:] != q.shape[-2:]:
        raise ValueError(f"q, k and v must be {layout}; got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}")
    if k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(f"q, k and v must have one dtype; got {q.dtype}, {k.dtype}, {v.dtype}")
    if q.shape[-1] not in HEAD_DIMS:
        raise ValueError(f"head dim must be one of {HEAD_DIMS}; got {q.shape[-1]}")


def joint_attention(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Softmax attention of every query to every key of its batch item, scale ``K ** -0.5``.

    Args:
        q: ``(B, L, N, K)``, K one of :data:`HEAD_DIMS`, any strides with a contiguous last dimension.
        k: ``(B, M, N, K)``.
        v: ``(B, M, N, K)``.
        mask: ``(B, M)`` bool, true where a key counts. Without one the kernel is faster: trim or pack instead.

    Returns:
        ``(B, L, N, K)``, contiguous; zeros for a batch item without keys.

    Raises:
        ValueError: A shape or dtype does not fit, or the tensors are not on a CUDA device.
    """
    _check(q, k, v, 4, "(B, L, N, K), (B, M, N, K), (B, M, N, K)")
    if k.shape[0] != q.shape[0]:
        raise ValueError(f"q, k and v must have one batch size; got {q.shape[0]} and {k.shape[0]}")
    if mask is not None and (mask.shape != k.shape[:2] or mask.dtype != torch.bool):
        raise ValueError(f"mask must be bool of shape {tuple(k.shape[:2])}; got {mask.dtype} {tuple(mask.shape)}")
    return _forward(q, k, v, mask, None, None, q.shape[1], k.shape[1])[0]


def joint_attention_varlen(
    q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int
) -> Tensor:
    """Attention inside each of several documents that lie side by side in one sequence.

    Args:
        q: ``(total_q, N, K)``.
        k: ``(total_k, N, K)``.
        v: ``(total_k, N, K)``.
        cu_seqlens_q: ``(documents + 1,)`` int32: where each document starts in q, then ``total_q``.
        cu_seqlens_k: ``(documents + 1,)`` int32: the same for k and v.
        max_seqlen_q: Length of the longest document in q.
        max_seqlen_k: Length of the longest document in k and v.

    Returns:
        ``(total_q, N, K)``, contiguous.

    Raises:
        ValueError: A shape or dtype does not fit, or the tensors are not on a CUDA device.
    """
    _check(q, k, v, 3, "(total_q, N, K), (total_k, N, K), (total_k, N, K)")
    for name, cu in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        if cu.ndim != 1 or cu.dtype != torch.int32 or cu.shape != cu_seqlens_q.shape or not cu.shape[0]:
            raise ValueError(f"{name} must be int32 of shape (documents + 1,); got {cu.dtype} {tuple(cu.shape)}")
    q, k, v = (x.unsqueeze(0) for x in (q, k, v))  # (1, total, N, K)
    return _forward(q, k, v, None, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)[0].squeeze(0)
