"""The forward kernel of joint attention."""

# Triton functions take blocks and pointers, for which Python has no types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from omnihuman_kernels._launch import LENGTHS
from omnihuman_kernels.joint_attention.rows import describe_rows, document, first_row, load_rows, store_rows


@triton.jit(do_not_specialize=LENGTHS)
def forward_kernel(
    q_ptr, k_ptr, v_ptr, bias_ptr, cu_q_ptr, cu_k_ptr, out_ptr, lse_ptr,
    q_stride_b, q_stride_l, q_stride_n, k_stride_b, k_stride_l, k_stride_n, v_stride_b, v_stride_l, v_stride_n,
    o_stride_b, o_stride_l, lse_stride_b, lse_stride_n, bias_stride_b,
    len_q, len_k, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, VARLEN: tl.constexpr, MASKED: tl.constexpr,
    TMA: tl.constexpr, WARP_SPECIALIZE: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """A tile of queries of one head against all keys.

    With ``MASKED``, ``bias`` holds 0 for each key that counts and minus infinity for the others, up to a whole tile.
    """
    first = tl.program_id(0) * BLOCK_M
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    q_from, len_q = document(cu_q_ptr, batch, len_q, VARLEN)
    k_from, len_k = document(cu_k_ptr, batch, len_k, VARLEN)
    q_start = first_row(q_ptr, batch, head, q_from, q_stride_b, q_stride_l, q_stride_n, VARLEN)
    k_start = first_row(k_ptr, batch, head, k_from, k_stride_b, k_stride_l, k_stride_n, VARLEN)
    v_start = first_row(v_ptr, batch, head, k_from, v_stride_b, v_stride_l, v_stride_n, VARLEN)
    out_start = first_row(out_ptr, batch, head, q_from, o_stride_b, o_stride_l, HEAD_DIM, VARLEN)
    lse_start = first_row(lse_ptr, batch, head, q_from, lse_stride_b, 1, lse_stride_n, VARLEN)
    q_desc = describe_rows(q_start, len_q, q_stride_l, BLOCK_M, HEAD_DIM, TMA)
    k_desc = describe_rows(k_start, len_k, k_stride_l, BLOCK_N, HEAD_DIM, TMA)
    v_desc = describe_rows(v_start, len_k, v_stride_l, BLOCK_N, HEAD_DIM, TMA)
    bias_start = bias_ptr + batch * bias_stride_b if MASKED else bias_ptr
    # By descriptor the bias comes from the producer too; a load from a pointer would make the compiler drop that group.
    if MASKED and TMA:
        bias_desc = tl.make_tensor_descriptor(
            bias_start, shape=[1, bias_stride_b], strides=[bias_stride_b, 1], block_shape=[1, BLOCK_N]
        )
    q = load_rows(q_desc, q_start, first, len_q, q_stride_l, BLOCK_M, HEAD_DIM, TMA, UPCAST)

    best = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    out = tl.zeros((BLOCK_M, HEAD_DIM), tl.float32)
    # A program past the end of a short document has nothing to do; returning early would disturb the producer group.
    end = tl.where(first < len_q, len_k, 0)
    for start in tl.range(0, end, BLOCK_N, warp_specialize=WARP_SPECIALIZE):
        k = load_rows(k_desc, k_start, start, len_k, k_stride_l, BLOCK_N, HEAD_DIM, TMA, UPCAST)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        keys = start + tl.arange(0, BLOCK_N)
        if MASKED:
            scores += bias_desc.load([0, start]) if TMA else tl.load(bias_start + keys)[None, :]
        else:
            scores = tl.where((keys < len_k)[None, :], scores, float("-inf"))
        # The scale is positive, so it may wait: for the maximum one product a row, below none beside the subtraction.
        better = tl.maximum(best, tl.max(scores, axis=1) * scale_log2)
        if MASKED:
            # A row may not have seen a key yet, and -inf - -inf is not a number.
            offset = tl.where(better == float("-inf"), 0.0, better)
        else:
            offset = better
        weights = tl.exp2(scores * scale_log2 - offset[:, None])
        correction = tl.exp2(best - offset)
        total = total * correction + tl.sum(weights, axis=1)
        best = better
        out = out * correction[:, None]
        v = load_rows(v_desc, v_start, start, len_k, v_stride_l, BLOCK_N, HEAD_DIM, TMA, UPCAST)
        out = tl.dot(weights.to(v.dtype), v, out, input_precision=PRECISION)

    # A query without keys gives zeros.
    some = total > 0
    out = out / tl.where(some, total, 1.0)[:, None]
    store_rows(out_start, out, first, len_q, o_stride_l, BLOCK_M, HEAD_DIM)
    rows = first + tl.arange(0, BLOCK_M)
    tl.store(lse_start + rows, tl.where(some, best + tl.log2(tl.where(some, total, 1.0)), 0.0), mask=rows < len_q)
