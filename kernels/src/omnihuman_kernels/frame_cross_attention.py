r"""Cross-attention of the tokens of a latent frame to the audio tokens of that frame, RMSNorm of q as a prologue.

.. math::
    o_i = \sum_a \mathrm{softmax}_a\!\left(\frac{\hat q_i \cdot k_a}{\sqrt K}\right) v_a, \qquad
    \hat q_i = w \odot q_i / \sqrt{\mathrm{mean}(q_i^2) + \epsilon}

A frame has few audio tokens, so its k and v are one tile: a program loads them once and streams q past them, and
backward computes the weights again instead of reading statistics. k and v do not depend on the noise level: compute
them once a clip.

Traffic for a video token of width ``h`` in 2-byte numbers: forward ``4 h`` bytes (read q, write o), backward ``6 h``
(read do and q, write dq). ``4 A h`` flops forward, ``10 A h`` backward for A audio tokens: bound by memory up to A of a
few hundred. Eager reference: ``omnihuman_core.ops``.
"""

# Triton functions take blocks and pointers, for which Python has no types, and custom ops return Any.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-any-return, type-arg, no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnihuman_kernels._launch import LENGTHS, interpreting, launch, require_device, unit_stride

# Audio tokens of a frame that fit one tile, in 2-byte numbers and in float32.
MOST_KEYS, MOST_KEYS_FLOAT32 = 128, 64

# Query tiles that a forward program streams past its keys.
TILES_A_PROGRAM = 8

# Queries of a tile, warps that share it and tiles in flight: the largest that spill no registers at head dim 128 and 64
# keys. More keys leave room for less. Full-precision products take their operands from registers. All but the backward
# over many keys fit GPUs that give a program 99 KiB of shared memory.
FORWARD, FORWARD_MANY_KEYS, FORWARD_FLOAT32 = (64, 4, 3), (32, 4, 3), (16, 8, 3)
BACKWARD, BACKWARD_MANY_KEYS, BACKWARD_FLOAT32 = (32, 8, 3), (16, 8, 2), (16, 16, 2)

LOG2_E = 1.4426950408889634


@triton.jit
def _prologue(q, weight, valid, eps, HEAD_DIM: tl.constexpr):
    rstd = tl.rsqrt(tl.sum(q * q, axis=1) / HEAD_DIM + eps)
    return tl.where(valid[:, None], q * rstd[:, None], 0.0), rstd


@triton.jit
def _weights(scores, scale_log2, num_keys, KEYS: tl.constexpr):
    scores = tl.where((tl.arange(0, KEYS) < num_keys)[None, :], scores * scale_log2, float("-inf"))
    weights = tl.exp2(scores - tl.max(scores, axis=1)[:, None])
    return weights / tl.sum(weights, axis=1)[:, None]


@triton.jit(do_not_specialize=LENGTHS)
def forward_kernel(
    q_ptr, k_ptr, v_ptr, weight_ptr, out_ptr,
    q_stride_b, q_stride_t, q_stride_p, q_stride_n,
    k_stride_b, k_stride_t, k_stride_a, k_stride_n, v_stride_b, v_stride_t, v_stride_a, v_stride_n,
    frames, num_queries, num_keys, num_heads, scale_log2, eps,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, HEAD_DIM: tl.constexpr, TILES: tl.constexpr, PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """One frame, one head, several query tiles."""
    head = tl.program_id(1).to(tl.int64)
    batch = (tl.program_id(2) // frames).to(tl.int64)
    frame = (tl.program_id(2) % frames).to(tl.int64)
    dims = tl.arange(0, HEAD_DIM)
    keys = tl.arange(0, KEYS)
    wide_keys = keys.to(tl.int64)[:, None]
    heard = (keys < num_keys)[:, None]
    k_start = k_ptr + batch * k_stride_b + frame * k_stride_t + head * k_stride_n
    v_start = v_ptr + batch * v_stride_b + frame * v_stride_t + head * v_stride_n
    k = tl.load(k_start + wide_keys * k_stride_a + dims[None, :], mask=heard, other=0.0)
    v = tl.load(v_start + wide_keys * v_stride_a + dims[None, :], mask=heard, other=0.0)
    if UPCAST:
        k = k.to(tl.float32)
        v = v.to(tl.float32)
    weight = tl.load(weight_ptr + dims).to(tl.float32)
    q_start = q_ptr + batch * q_stride_b + frame * q_stride_t + head * q_stride_n
    out_start = out_ptr + ((batch * frames + frame) * num_queries * num_heads + head) * HEAD_DIM
    # The last program of a frame has fewer tiles than the others.
    first = tl.program_id(0) * TILES * QUERIES
    for step in range(tl.minimum(TILES, tl.cdiv(num_queries - first, QUERIES))):
        rows = first + step * QUERIES + tl.arange(0, QUERIES)
        valid = rows < num_queries
        wide = rows.to(tl.int64)[:, None]
        q = tl.load(q_start + wide * q_stride_p + dims[None, :], mask=valid[:, None], other=0.0).to(tl.float32)
        normed, _ = _prologue(q, weight, valid, eps, HEAD_DIM)
        scores = tl.dot((normed * weight[None, :]).to(k.dtype), tl.trans(k), input_precision=PRECISION)
        out = tl.dot(_weights(scores, scale_log2, num_keys, KEYS).to(v.dtype), v, input_precision=PRECISION)
        out_at = out_start + wide * num_heads * HEAD_DIM + dims[None, :]
        tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=valid[:, None])


@triton.jit(do_not_specialize=LENGTHS)
def backward_kernel(
    do_ptr, q_ptr, k_ptr, v_ptr, weight_ptr, dq_ptr, dk_ptr, dv_ptr, dweight_ptr,
    do_stride_b, do_stride_t, do_stride_p, do_stride_n, q_stride_b, q_stride_t, q_stride_p, q_stride_n,
    k_stride_b, k_stride_t, k_stride_a, k_stride_n, v_stride_b, v_stride_t, v_stride_a, v_stride_n,
    frames, num_queries, num_keys, num_heads, scale, scale_log2, eps,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, HEAD_DIM: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One frame, one head, all queries; dk and dv stay in registers."""
    head = tl.program_id(0).to(tl.int64)
    batch = (tl.program_id(1) // frames).to(tl.int64)
    frame = (tl.program_id(1) % frames).to(tl.int64)
    dims = tl.arange(0, HEAD_DIM)
    keys = tl.arange(0, KEYS)
    wide_keys = keys.to(tl.int64)[:, None]
    heard = (keys < num_keys)[:, None]
    k_start = k_ptr + batch * k_stride_b + frame * k_stride_t + head * k_stride_n
    v_start = v_ptr + batch * v_stride_b + frame * v_stride_t + head * v_stride_n
    k = tl.load(k_start + wide_keys * k_stride_a + dims[None, :], mask=heard, other=0.0)
    v = tl.load(v_start + wide_keys * v_stride_a + dims[None, :], mask=heard, other=0.0)
    if UPCAST:
        k = k.to(tl.float32)
        v = v.to(tl.float32)
    weight = tl.load(weight_ptr + dims).to(tl.float32)
    q_start = q_ptr + batch * q_stride_b + frame * q_stride_t + head * q_stride_n
    do_start = do_ptr + batch * do_stride_b + frame * do_stride_t + head * do_stride_n
    dq_start = dq_ptr + ((batch * frames + frame) * num_queries * num_heads + head) * HEAD_DIM
    dk = tl.zeros((KEYS, HEAD_DIM), tl.float32)
    dv = tl.zeros((KEYS, HEAD_DIM), tl.float32)
    dweight = tl.zeros((HEAD_DIM,), tl.float32)
    for first in range(0, num_queries, QUERIES):
        rows = first + tl.arange(0, QUERIES)
        valid = rows < num_queries
        wide = rows.to(tl.int64)[:, None]
        q = tl.load(q_start + wide * q_stride_p + dims[None, :], mask=valid[:, None], other=0.0).to(tl.float32)
        do = tl.load(do_start + wide * do_stride_p + dims[None, :], mask=valid[:, None], other=0.0)
        if UPCAST:
            do = do.to(tl.float32)
        normed, rstd = _prologue(q, weight, valid, eps, HEAD_DIM)
        scaled = (normed * weight[None, :]).to(k.dtype)
        scores = tl.dot(scaled, tl.trans(k), input_precision=PRECISION)
        weights = _weights(scores, scale_log2, num_keys, KEYS)
        dweights = tl.dot(do.to(v.dtype), tl.trans(v), input_precision=PRECISION)
        dscores = weights * (dweights - tl.sum(weights * dweights, axis=1)[:, None]) * scale
        dv += tl.dot(tl.trans(weights.to(v.dtype)), do.to(v.dtype), input_precision=PRECISION)
        dk += tl.dot(tl.trans(dscores.to(k.dtype)), scaled, input_precision=PRECISION)
        dscaled = tl.dot(dscores.to(k.dtype), k, input_precision=PRECISION)
        dweight += tl.sum(dscaled * normed, axis=0)
        dnormed = dscaled * weight[None, :]
        dq = (dnormed - normed * (tl.sum(dnormed * normed, axis=1) / HEAD_DIM)[:, None]) * rstd[:, None]
        dq_at = dq_start + wide * num_heads * HEAD_DIM + dims[None, :]
        tl.store(dq_at, dq.to(dq_ptr.dtype.element_ty), mask=valid[:, None])
    item = (batch * frames + frame) * num_keys
    at = ((item + wide_keys) * num_heads + head) * HEAD_DIM + dims[None, :]
    tl.store(dk_ptr + at, dk.to(dk_ptr.dtype.element_ty), mask=heard)
    tl.store(dv_ptr + at, dv.to(dv_ptr.dtype.element_ty), mask=heard)
    # One row a program and a sum afterwards: the same bits on every run, which atomics would not give.
    tl.store(dweight_ptr + ((batch * frames + frame) * num_heads + head) * HEAD_DIM + dims, dweight)


def _check(q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor) -> None:
    if q.ndim != 5 or k.shape != v.shape or k.shape != (*q.shape[:2], *k.shape[2:3], *q.shape[3:]):
        raise ValueError(
            "q must be (B, t, P, N, K), k and v (B, t, A, N, K); "
            f"got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(f"q, k and v must have one dtype; got {q.dtype}, {k.dtype}, {v.dtype}")
    if q.shape[4] not in (16, 32, 64, 128):
        raise ValueError(f"head dim must be 16, 32, 64 or 128; got {q.shape[4]}")
    most = MOST_KEYS_FLOAT32 if q.dtype == torch.float32 else MOST_KEYS
    if not 1 <= k.shape[2] <= most:
        raise ValueError(f"a frame must have 1 to {most} audio tokens in {q.dtype}; got {k.shape[2]}")
    if q_weight.shape != (q.shape[4],):
        raise ValueError(f"q_weight must have shape ({q.shape[4]},); got {tuple(q_weight.shape)}")


def _options(q: Tensor, k: Tensor, *, backward: bool) -> dict[str, Any]:
    if q.dtype == torch.float32:
        queries, num_warps, num_stages = BACKWARD_FLOAT32 if backward else FORWARD_FLOAT32
    elif k.shape[2] > 64:
        queries, num_warps, num_stages = BACKWARD_MANY_KEYS if backward else FORWARD_MANY_KEYS
    else:
        queries, num_warps, num_stages = BACKWARD if backward else FORWARD
    return {
        "QUERIES": 16 if interpreting() else queries,
        "KEYS": max(16, triton.next_power_of_2(k.shape[2])),
        "HEAD_DIM": q.shape[4],
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
        # The interpreter multiplies bfloat16 as if it were integers.
        "UPCAST": interpreting() and q.dtype == torch.bfloat16,
        "num_warps": num_warps,
        "num_stages": num_stages,
    }


@torch.library.custom_op("omnihuman::frame_cross_attention", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor, eps: float) -> Tensor:
    require_device(q)
    q, k, v, q_weight = (unit_stride(x) for x in (q, k, v, q_weight))
    batch, frames, queries, heads, head_dim = q.shape
    out = q.new_empty(q.shape)
    options = _options(q, k, backward=False)
    programs = triton.cdiv(queries, options["QUERIES"] * TILES_A_PROGRAM)
    launch(
        forward_kernel, (programs, heads, batch * frames), q,
        q, k, v, q_weight, out, *q.stride()[:4], *k.stride()[:4], *v.stride()[:4],
        frames, queries, k.shape[2], heads, head_dim**-0.5 * LOG2_E, eps, TILES=TILES_A_PROGRAM, **options,
    )  # fmt: skip
    return out


@_forward.register_fake
def _empty_forward(q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor, eps: float) -> Tensor:
    return q.new_empty(q.shape)


@torch.library.custom_op("omnihuman::frame_cross_attention_backward", mutates_args=())
def _backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    require_device(q)
    do, q, k, v, q_weight = (unit_stride(x) for x in (do, q, k, v, q_weight))
    batch, frames, queries, heads, head_dim = q.shape
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    dweight = q.new_empty((batch * frames * heads, head_dim), dtype=torch.float32)
    launch(
        backward_kernel, (heads, batch * frames), q,
        do, q, k, v, q_weight, dq, dk, dv, dweight, *do.stride()[:4], *q.stride()[:4], *k.stride()[:4], *v.stride()[:4],
        frames, queries, k.shape[2], heads, head_dim**-0.5, head_dim**-0.5 * LOG2_E, eps,
        **_options(q, k, backward=True),
    )  # fmt: skip
    return dq, dk, dv, dweight.sum(0).to(q_weight.dtype)


@_backward.register_fake
def _empty_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), torch.empty_like(q_weight)


def _setup(ctx, inputs, output) -> None:
    *saved, ctx.eps = inputs
    ctx.save_for_backward(*saved)


def _differentiate(ctx, do):
    return (*_backward(do, *ctx.saved_tensors, ctx.eps), None)


_forward.register_autograd(_differentiate, setup_context=_setup)


def frame_cross_attention(q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor, *, eps: float) -> Tensor:
    """Attention of each frame's tokens to that frame's audio tokens.

    Args:
        q: ``(B, t, P, N, K)``, raw, K one of 16, 32, 64, 128.
        k: ``(B, t, A, N, K)``, already normalised, A at most :data:`MOST_KEYS`, in float32 :data:`MOST_KEYS_FLOAT32`.
        v: ``(B, t, A, N, K)``.
        q_weight: ``(K,)``.
        eps: Added to the mean square of q, positive.

    Returns:
        ``(B, t, P, N, K)``, contiguous.

    Raises:
        ValueError: A shape or dtype does not fit, or the tensors are not on a CUDA device.
    """
    _check(q, k, v, q_weight)
    return _forward(q, k, v, q_weight, eps)
