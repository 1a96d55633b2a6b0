r"""RMSNorm of q and k per head and rotary embedding, in one pass over both.

.. math::
    n = w \odot x / \sqrt{\mathrm{mean}(x^2) + \epsilon}, \qquad
    y_{2i} = n_{2i} c_i - n_{2i+1} s_i, \quad y_{2i+1} = n_{2i} s_i + n_{2i+1} c_i

The positions live in the tables alone: a reference token has the temporal part of its angles at zero, a text token has
``cos = 1, sin = 0``. Backward needs the raw q and k and one inverse norm a head; the rotated copies are not kept.

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

from omnihuman_kernels._launch import PERSISTENT_PROGRAMS, launch, require_device, unit_stride

# Numbers one program holds: eight 128-wide heads for four warps is what makes 128-bit loads and stores.
ELEMENTS = 1024


@triton.jit
def _rows(tile, num_rows, num_heads, length, HEADS: tl.constexpr):
    """Batch item, position and head of each row of a tile; the divisions stay in 32 bits, where they are cheap."""
    row = tile * HEADS + tl.arange(0, HEADS)
    token = row // num_heads
    batch = token // length
    return row, batch, token - batch * length, row - token * num_heads, row < num_rows


@triton.jit
def _start(batch, position, head, stride_b, stride_l, stride_n):
    return batch.to(tl.int64) * stride_b + position.to(tl.int64) * stride_l + head * stride_n


@triton.jit
def _normalise(x, weight, eps, HEAD_DIM: tl.constexpr):
    rstd = tl.rsqrt(tl.sum(x * x, axis=1) / HEAD_DIM + eps)
    return x * rstd[:, None] * weight[None, :], rstd


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


@triton.jit
def forward_kernel(
    q_ptr, k_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr, q_out_ptr, k_out_ptr, q_rstd_ptr, k_rstd_ptr,
    q_stride_b, q_stride_l, q_stride_n, k_stride_b, k_stride_l, k_stride_n,
    num_rows, length, num_heads, eps,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """A tile of heads of q and the same of k."""
    tile = tl.program_id(0)
    dims = tl.arange(0, HEAD_DIM)
    pairs = tl.arange(0, HEAD_DIM // 2)
    row, batch, position, head, valid = _rows(tile, num_rows, num_heads, length, HEADS)
    q_start = _start(batch, position, head, q_stride_b, q_stride_l, q_stride_n)
    k_start = _start(batch, position, head, k_stride_b, k_stride_l, k_stride_n)
    table = position[:, None] * (HEAD_DIM // 2) + pairs[None, :]
    cos = tl.load(cos_ptr + table, mask=valid[:, None], other=0.0)
    sin = tl.load(sin_ptr + table, mask=valid[:, None], other=0.0)
    q_weight = tl.load(q_weight_ptr + dims).to(tl.float32)
    k_weight = tl.load(k_weight_ptr + dims).to(tl.float32)
    _forward_one(q_ptr, q_out_ptr, q_rstd_ptr, q_weight, cos, sin, row, q_start, valid, eps, HEADS, HEAD_DIM)
    _forward_one(k_ptr, k_out_ptr, k_rstd_ptr, k_weight, cos, sin, row, k_start, valid, eps, HEADS, HEAD_DIM)


@triton.jit
def _backward_one(
    dy_ptr, x_ptr, rstd_ptr, dx_ptr, weight, cos, sin, row, dy_start, x_start, valid,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    dims = tl.arange(0, HEAD_DIM)
    dy = tl.load(dy_ptr + dy_start[:, None] + dims[None, :], mask=valid[:, None], other=0.0).to(tl.float32)
    x = tl.load(x_ptr + x_start[:, None] + dims[None, :], mask=valid[:, None], other=0.0).to(tl.float32)
    rstd = tl.load(rstd_ptr + row, mask=valid, other=0.0)
    even, odd = tl.split(tl.reshape(dy, (HEADS, HEAD_DIM // 2, 2)))
    # The rotation is orthogonal, so its transpose turns back.
    dn = tl.reshape(tl.join(even * cos + odd * sin, odd * cos - even * sin), (HEADS, HEAD_DIM))
    normed = x * rstd[:, None]
    weighted = dn * weight[None, :]
    dx = (weighted - normed * (tl.sum(weighted * normed, axis=1) / HEAD_DIM)[:, None]) * rstd[:, None]
    tl.store(
        dx_ptr + row.to(tl.int64)[:, None] * HEAD_DIM + dims[None, :],
        dx.to(dx_ptr.dtype.element_ty),
        mask=valid[:, None],
    )
    return tl.sum(dn * normed, axis=0)


@triton.jit
def backward_kernel(
    dq_out_ptr, dk_out_ptr, q_ptr, k_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr, q_rstd_ptr, k_rstd_ptr,
    dq_ptr, dk_ptr, dweight_ptr,
    dqo_stride_b, dqo_stride_l, dqo_stride_n, dko_stride_b, dko_stride_l, dko_stride_n,
    q_stride_b, q_stride_l, q_stride_n, k_stride_b, k_stride_l, k_stride_n,
    num_rows, length, num_heads, num_tiles,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """Tiles of heads of q and k, and their part of the weights' gradients."""
    program = tl.program_id(0)
    dims = tl.arange(0, HEAD_DIM)
    pairs = tl.arange(0, HEAD_DIM // 2)
    q_weight = tl.load(q_weight_ptr + dims).to(tl.float32)
    k_weight = tl.load(k_weight_ptr + dims).to(tl.float32)
    dq_weight = tl.zeros((HEAD_DIM,), tl.float32)
    dk_weight = tl.zeros((HEAD_DIM,), tl.float32)
    for tile in range(program, num_tiles, tl.num_programs(0)):
        row, batch, position, head, valid = _rows(tile, num_rows, num_heads, length, HEADS)
        q_start = _start(batch, position, head, q_stride_b, q_stride_l, q_stride_n)
        k_start = _start(batch, position, head, k_stride_b, k_stride_l, k_stride_n)
        dq_start = _start(batch, position, head, dqo_stride_b, dqo_stride_l, dqo_stride_n)
        dk_start = _start(batch, position, head, dko_stride_b, dko_stride_l, dko_stride_n)
        table = position[:, None] * (HEAD_DIM // 2) + pairs[None, :]
        cos = tl.load(cos_ptr + table, mask=valid[:, None], other=0.0)
        sin = tl.load(sin_ptr + table, mask=valid[:, None], other=0.0)
        dq_weight += _backward_one(
            dq_out_ptr, q_ptr, q_rstd_ptr, dq_ptr, q_weight, cos, sin, row, dq_start, q_start, valid, HEADS, HEAD_DIM
        )
        dk_weight += _backward_one(
            dk_out_ptr, k_ptr, k_rstd_ptr, dk_ptr, k_weight, cos, sin, row, dk_start, k_start, valid, HEADS, HEAD_DIM
        )
    # One row a program and a sum afterwards: the same bits on every run, which atomics would not give.
    tl.store(dweight_ptr + program * 2 * HEAD_DIM + dims, dq_weight)
    tl.store(dweight_ptr + program * 2 * HEAD_DIM + HEAD_DIM + dims, dk_weight)


def _check(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor) -> None:
    if q.ndim != 4 or k.shape != q.shape or k.dtype != q.dtype:
        raise ValueError(
            "q and k must have one shape (B, L, N, K) and dtype; "
            f"got {tuple(q.shape)} {q.dtype} and {tuple(k.shape)} {k.dtype}"
        )
    length, head_dim = q.shape[1], q.shape[3]
    if q.shape[:3].numel() >= 2**31:
        raise ValueError(f"q has {q.shape[:3].numel()} heads in all; split the batch below 2**31")
    if head_dim < 2 or head_dim & (head_dim - 1):
        raise ValueError(f"head dim must be a power of two of at least 2; got {head_dim}")
    if q_weight.shape != (head_dim,) or k_weight.shape != (head_dim,):
        raise ValueError(
            f"q_weight and k_weight must have shape ({head_dim},); got {tuple(q_weight.shape)}, {tuple(k_weight.shape)}"
        )
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
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    require_device(q)
    q, k, cos, sin = unit_stride(q), unit_stride(k), cos.contiguous(), sin.contiguous()
    q_out, k_out, q_rstd, k_rstd = _empty_forward(q, k, q_weight, k_weight, cos, sin, eps)
    heads, tiles = _tiling(q)
    launch(
        forward_kernel, (tiles,), q,
        q, k, q_weight, k_weight, cos, sin, q_out, k_out, q_rstd, k_rstd,
        *q.stride()[:3], *k.stride()[:3], q.shape[:3].numel(), q.shape[1], q.shape[2], eps,
        HEADS=heads, HEAD_DIM=q.shape[3], num_warps=4,
    )  # fmt: skip
    return q_out, k_out, q_rstd, k_rstd


@_forward.register_fake
def _empty_forward(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rstd = q.new_empty(q.shape[:3], dtype=torch.float32)
    return q.new_empty(q.shape), q.new_empty(q.shape), rstd, torch.empty_like(rstd)


@torch.library.custom_op("omnihuman::qk_norm_rope_backward", mutates_args=())
def _backward(
    dq_out: Tensor, dk_out: Tensor, q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor,
    cos: Tensor, sin: Tensor, q_rstd: Tensor, k_rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    require_device(q)
    dq_out, dk_out, q, k = unit_stride(dq_out), unit_stride(dk_out), unit_stride(q), unit_stride(k)
    cos, sin = cos.contiguous(), sin.contiguous()
    heads, tiles = _tiling(q)
    programs = min(tiles, PERSISTENT_PROGRAMS)
    dq, dk = q.new_empty(q.shape), q.new_empty(q.shape)
    dweight = q.new_empty((programs, 2, q.shape[3]), dtype=torch.float32)
    launch(
        backward_kernel, (programs,), q,
        dq_out, dk_out, q, k, q_weight, k_weight, cos, sin, q_rstd, k_rstd, dq, dk, dweight,
        *dq_out.stride()[:3], *dk_out.stride()[:3], *q.stride()[:3], *k.stride()[:3],
        q.shape[:3].numel(), q.shape[1], q.shape[2], tiles,
        HEADS=heads, HEAD_DIM=q.shape[3], num_warps=4,
    )  # fmt: skip
    total = dweight.sum(0)  # (2, K)
    return dq, dk, total[0].to(q_weight.dtype), total[1].to(k_weight.dtype, copy=True)


@_backward.register_fake
def _empty_backward(
    dq_out: Tensor, dk_out: Tensor, q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor,
    cos: Tensor, sin: Tensor, q_rstd: Tensor, k_rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return q.new_empty(q.shape), q.new_empty(q.shape), torch.empty_like(q_weight), torch.empty_like(k_weight)


def _setup(ctx, inputs, output) -> None:
    *saved, _ = inputs
    ctx.save_for_backward(*saved, output[2], output[3])
    # Otherwise autograd writes zeros for the inverse norms, which nobody differentiates.
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dq_out, dk_out, _dq_rstd, _dk_rstd):
    q, k, *_ = ctx.saved_tensors
    dq_out = torch.zeros_like(q) if dq_out is None else dq_out
    dk_out = torch.zeros_like(k) if dk_out is None else dk_out
    return (*_backward(dq_out, dk_out, *ctx.saved_tensors), None, None, None)


_forward.register_autograd(_differentiate, setup_context=_setup)


def qk_norm_rope(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """Normalise and rotate q and k.

    Args:
        q: ``(B, L, N, K)``, any strides with a contiguous last dimension (a slice of a packed projection is fine).
        k: Like ``q``.
        q_weight: ``(K,)``.
        k_weight: ``(K,)``.
        cos: ``(L, K / 2)`` float32, 1 for a token without a position.
        sin: ``(L, K / 2)`` float32, 0 for a token without a position.
        eps: Added to the mean square, positive.

    Returns:
        q and k, contiguous ``(B, L, N, K)``.

    Raises:
        ValueError: A shape or dtype does not fit, or the tensors are not on a CUDA device.
    """
    _check(q, k, q_weight, k_weight, cos, sin)
    q_out, k_out, _, _ = _forward(q, k, q_weight, k_weight, cos, sin, eps)
    return q_out, k_out
