"""The backward kernels of joint attention: two passes, or a preparation and one pass over the keys."""

# Triton functions take blocks and pointers, for which Python has no types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from omnihuman_kernels._launch import LENGTHS
from omnihuman_kernels.joint_attention.rows import describe_rows, document, first_row, load_rows, store_rows


@triton.jit(do_not_specialize=LENGTHS)
def backward_q_kernel(
    do_ptr, out_ptr, q_ptr, k_ptr, v_ptr, mask_ptr, cu_q_ptr, cu_k_ptr, lse_ptr, delta_ptr, dq_ptr,
    do_stride_b, do_stride_l, do_stride_n, q_stride_b, q_stride_l, q_stride_n, k_stride_b, k_stride_l, k_stride_n,
    v_stride_b, v_stride_l, v_stride_n, o_stride_b, o_stride_l, lse_stride_b, lse_stride_n, mask_stride_b,
    len_q, len_k, scale, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, VARLEN: tl.constexpr, MASKED: tl.constexpr,
    TMA: tl.constexpr, WARP_SPECIALIZE: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of queries, and the row sums of do * out."""
    first = tl.program_id(0) * BLOCK_M
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    q_from, len_q = document(cu_q_ptr, batch, len_q, VARLEN)
    k_from, len_k = document(cu_k_ptr, batch, len_k, VARLEN)
    do_start = first_row(do_ptr, batch, head, q_from, do_stride_b, do_stride_l, do_stride_n, VARLEN)
    q_start = first_row(q_ptr, batch, head, q_from, q_stride_b, q_stride_l, q_stride_n, VARLEN)
    k_start = first_row(k_ptr, batch, head, k_from, k_stride_b, k_stride_l, k_stride_n, VARLEN)
    v_start = first_row(v_ptr, batch, head, k_from, v_stride_b, v_stride_l, v_stride_n, VARLEN)
    out_start = first_row(out_ptr, batch, head, q_from, o_stride_b, o_stride_l, HEAD_DIM, VARLEN)
    dq_start = first_row(dq_ptr, batch, head, q_from, o_stride_b, o_stride_l, HEAD_DIM, VARLEN)
    lse_start = first_row(lse_ptr, batch, head, q_from, lse_stride_b, 1, lse_stride_n, VARLEN)
    delta_start = first_row(delta_ptr, batch, head, q_from, lse_stride_b, 1, lse_stride_n, VARLEN)
    k_desc = describe_rows(k_start, len_k, k_stride_l, BLOCK_N, HEAD_DIM, TMA)
    v_desc = describe_rows(v_start, len_k, v_stride_l, BLOCK_N, HEAD_DIM, TMA)
    # Through descriptors too, so that tiles that stay lie in shared memory instead of registers.
    q_desc = describe_rows(q_start, len_q, q_stride_l, BLOCK_M, HEAD_DIM, TMA)
    do_desc = describe_rows(do_start, len_q, do_stride_l, BLOCK_M, HEAD_DIM, TMA)
    q = load_rows(q_desc, q_start, first, len_q, q_stride_l, BLOCK_M, HEAD_DIM, TMA, UPCAST)
    do = load_rows(do_desc, do_start, first, len_q, do_stride_l, BLOCK_M, HEAD_DIM, TMA, UPCAST)
    out = load_rows(out_start, out_start, first, len_q, o_stride_l, BLOCK_M, HEAD_DIM, False, UPCAST)
    rows = first + tl.arange(0, BLOCK_M)
    delta = tl.sum(do.to(tl.float32) * out.to(tl.float32), axis=1)
    tl.store(delta_start + rows, delta, mask=rows < len_q)
    lse = tl.load(lse_start + rows, mask=rows < len_q, other=0.0)

    dq = tl.zeros((BLOCK_M, HEAD_DIM), tl.float32)
    end = tl.where(first < len_q, len_k, 0)
    for start in tl.range(0, end, BLOCK_N, warp_specialize=WARP_SPECIALIZE):
        k = load_rows(k_desc, k_start, start, len_k, k_stride_l, BLOCK_N, HEAD_DIM, TMA, UPCAST)
        v = load_rows(v_desc, v_start, start, len_k, v_stride_l, BLOCK_N, HEAD_DIM, TMA, UPCAST)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        keys = start + tl.arange(0, BLOCK_N)
        counts = keys < len_k
        if MASKED:
            counts = counts & (tl.load(mask_ptr + batch * mask_stride_b + keys, mask=counts, other=0) != 0)
        weights = tl.where(counts[None, :], tl.exp2(scores - lse[:, None]), 0.0)
        dweights = tl.dot(do.to(v.dtype), tl.trans(v), input_precision=PRECISION)
        dscores = weights * (dweights - delta[:, None])
        dq = tl.dot(dscores.to(k.dtype), k, dq, input_precision=PRECISION)
    store_rows(dq_start, dq * scale, first, len_q, o_stride_l, BLOCK_M, HEAD_DIM)


@triton.jit(do_not_specialize=LENGTHS)
def prepare_kernel(
    do_ptr, out_ptr, delta_ptr, dq_ptr,
    do_stride_b, do_stride_l, do_stride_n, o_stride_b, o_stride_l, lse_stride_b, lse_stride_n, length,
    HEAD_DIM: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Row sums of do * out, and zeros where the pass over the keys adds up dq."""
    first = tl.program_id(0) * ROWS
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
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


@triton.jit(do_not_specialize=LENGTHS)
def backward_kernel(
    do_ptr, q_ptr, k_ptr, v_ptr, mask_ptr, cu_q_ptr, cu_k_ptr, lse_ptr, delta_ptr, dq_ptr, dk_ptr, dv_ptr,
    do_stride_b, do_stride_l, do_stride_n, q_stride_b, q_stride_l, q_stride_n, k_stride_b, k_stride_l, k_stride_n,
    v_stride_b, v_stride_l, v_stride_n, dq_stride_b, dq_stride_l, dk_stride_b, dk_stride_l,
    lse_stride_b, lse_stride_n, mask_stride_b, len_q, len_k, scale, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, VARLEN: tl.constexpr, MASKED: tl.constexpr,
    TMA: tl.constexpr, WITH_DQ: tl.constexpr, REDUCE: tl.constexpr, WARP_SPECIALIZE: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and of its values; ``WITH_DQ`` also what the tile adds to that of every query.

    Without dq no mask is looked at: each row of dk and dv belongs to one key, and the caller clears the masked ones.
    """
    first = tl.program_id(0) * BLOCK_N
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    q_from, len_q = document(cu_q_ptr, batch, len_q, VARLEN)
    k_from, len_k = document(cu_k_ptr, batch, len_k, VARLEN)
    do_start = first_row(do_ptr, batch, head, q_from, do_stride_b, do_stride_l, do_stride_n, VARLEN)
    q_start = first_row(q_ptr, batch, head, q_from, q_stride_b, q_stride_l, q_stride_n, VARLEN)
    k_start = first_row(k_ptr, batch, head, k_from, k_stride_b, k_stride_l, k_stride_n, VARLEN)
    v_start = first_row(v_ptr, batch, head, k_from, v_stride_b, v_stride_l, v_stride_n, VARLEN)
    dk_start = first_row(dk_ptr, batch, head, k_from, dk_stride_b, dk_stride_l, HEAD_DIM, VARLEN)
    dv_start = first_row(dv_ptr, batch, head, k_from, dk_stride_b, dk_stride_l, HEAD_DIM, VARLEN)
    lse_start = first_row(lse_ptr, batch, head, q_from, lse_stride_b, 1, lse_stride_n, VARLEN)
    delta_start = first_row(delta_ptr, batch, head, q_from, lse_stride_b, 1, lse_stride_n, VARLEN)
    q_desc = describe_rows(q_start, len_q, q_stride_l, BLOCK_M, HEAD_DIM, TMA)
    do_desc = describe_rows(do_start, len_q, do_stride_l, BLOCK_M, HEAD_DIM, TMA)
    # Through descriptors too, so that tiles that stay lie in shared memory instead of registers.
    k_desc = describe_rows(k_start, len_k, k_stride_l, BLOCK_N, HEAD_DIM, TMA)
    v_desc = describe_rows(v_start, len_k, v_stride_l, BLOCK_N, HEAD_DIM, TMA)
    if WITH_DQ:
        dq_start = first_row(dq_ptr, batch, head, q_from, dq_stride_b, dq_stride_l, HEAD_DIM, VARLEN)
        # Adding through a descriptor leaves the sums to the memory system, a row of a tile at a time.
        dq_desc = describe_rows(dq_start, len_q, dq_stride_l, BLOCK_M, HEAD_DIM, REDUCE)
    k = load_rows(k_desc, k_start, first, len_k, k_stride_l, BLOCK_N, HEAD_DIM, TMA, UPCAST)
    v = load_rows(v_desc, v_start, first, len_k, v_stride_l, BLOCK_N, HEAD_DIM, TMA, UPCAST)
    keys = first + tl.arange(0, BLOCK_N)
    if WITH_DQ:
        counts = keys < len_k
        if MASKED:
            counts = tl.load(mask_ptr + batch * mask_stride_b + keys, mask=counts, other=0) != 0

    dk = tl.zeros((BLOCK_N, HEAD_DIM), tl.float32)
    dv = tl.zeros((BLOCK_N, HEAD_DIM), tl.float32)
    end = tl.where(first < len_k, len_q, 0)
    for start in tl.range(0, end, BLOCK_M, warp_specialize=WARP_SPECIALIZE):
        q = load_rows(q_desc, q_start, start, len_q, q_stride_l, BLOCK_M, HEAD_DIM, TMA, UPCAST)
        do = load_rows(do_desc, do_start, start, len_q, do_stride_l, BLOCK_M, HEAD_DIM, TMA, UPCAST)
        rows = start + tl.arange(0, BLOCK_M)
        # Rows past the end have q = do = 0 and get weight 1, which zero rows of do then leave without effect.
        lse = tl.load(lse_start + rows, mask=rows < len_q, other=0.0)
        delta = tl.load(delta_start + rows, mask=rows < len_q, other=0.0)
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale_log2
        weights = tl.exp2(scores - lse[None, :])
        # Keys past the end have score 0, whose weight may be infinite. Their rows of dk and dv are not stored, but dq
        # is a sum over keys.
        if WITH_DQ:
            weights = tl.where(counts[:, None], weights, 0.0)
        dv = tl.dot(weights.to(do.dtype), do, dv, input_precision=PRECISION)
        dweights = tl.dot(v, tl.trans(do), input_precision=PRECISION)
        dscores = (weights * (dweights - delta[None, :])).to(q.dtype)
        dk = tl.dot(dscores, q, dk, input_precision=PRECISION)
        if WITH_DQ:
            dq = tl.dot(tl.trans(dscores), k, input_precision=PRECISION) * scale
            if REDUCE:
                dq_desc.atomic_add([start, 0], dq)
            else:
                at = dq_start + rows.to(tl.int64)[:, None] * dq_stride_l + tl.arange(0, HEAD_DIM)[None, :]
                tl.atomic_add(at, dq, mask=(rows < len_q)[:, None], sem="relaxed")
    store_rows(dk_start, dk * scale, first, len_k, dk_stride_l, BLOCK_N, HEAD_DIM)
    store_rows(dv_start, dv, first, len_k, dk_stride_l, BLOCK_N, HEAD_DIM)
