"""Launches and registration of joint attention, and its two functions."""

# Autograd's functions have no types, and custom ops return Any.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-any-return, type-arg, no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from omnihuman_kernels._launch import (
    Tile,
    attention_tile,
    described,
    interpreting,
    launch,
    one_pass,
    require_device,
)
from omnihuman_kernels.joint_attention.backward import backward_kernel, backward_q_kernel, prepare_kernel
from omnihuman_kernels.joint_attention.forward import forward_kernel

HEAD_DIMS = (16, 32, 64, 128)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LOG2_E = 1.4426950408889634

# Queries of a program that prepares the backward pass.
PREPARED_ROWS = 32


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


def _dense(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Tensors without gaps."""
    return tuple(None if x is None else x.contiguous() for x in tensors)


def _bias(mask: Tensor, block: int) -> Tensor:
    """What a mask adds to scores, over whole tiles of ``block`` keys: their rows are then as descriptors want them."""
    keys = mask.shape[1]
    bias = mask.new_full((mask.shape[0], max(1, triton.cdiv(keys, block)) * block), float("-inf"), dtype=torch.float32)
    bias[:, :keys].masked_fill_(mask, 0.0)
    return bias


@torch.library.custom_op("omnihuman::joint_attention", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor,
    mask: Tensor | None, cu_q: Tensor | None, cu_k: Tensor | None, max_q: int, max_k: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    require_device(q)
    tile = attention_tile("forward" if mask is None else "forward_masked", q)
    q, k, v = (described(x) for x in (q, k, v))
    cu_q, cu_k = _dense(cu_q, cu_k)
    bias = None if mask is None else _bias(mask, tile.block_n)
    out, lse = _empty_forward(q)
    launch(
        forward_kernel, (triton.cdiv(max_q, tile.block_m), q.shape[2], _documents(q, cu_q)), q,
        q, k, v, bias, cu_q, cu_k, out, lse,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:2], *lse.stride()[:2],
        0 if bias is None else bias.stride(0), max_q, max_k, q.shape[3] ** -0.5 * LOG2_E,
        **_options(tile, q, mask, cu_q),
    )  # fmt: skip
    return out, lse


@_forward.register_fake
def _empty_forward(q: Tensor, *_others: object) -> tuple[Tensor, Tensor]:
    batch, length, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((batch, heads, length), dtype=torch.float32)


@torch.library.custom_op("omnihuman::joint_attention_backward", mutates_args=())
def _backward(
    do: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor,
    mask: Tensor | None, cu_q: Tensor | None, cu_k: Tensor | None, max_q: int, max_k: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    require_device(q)
    together = one_pass(q)
    first, second = (attention_tile(kind, q) for kind in ("backward_q", "backward" if together else "backward_kv"))
    do, q, k, v = (described(x) for x in (do, q, k, v))
    out, lse, mask, cu_q, cu_k = _dense(out, lse, mask, cu_q, cu_k)
    dq, dk, dv = _empty_backward(do, out, lse, q, k, v)
    delta = torch.empty_like(lse)
    heads, head_dim, scale = q.shape[2], q.shape[3], q.shape[3] ** -0.5
    inputs, statistics = (q, k, v, mask, cu_q, cu_k), (*lse.stride()[:2], 0 if mask is None else mask.stride(0))
    # Each row of dk and dv is of one key, so without dq a mask may wait: in the kernel it makes some compilers spill.
    mask_later = mask is not None and not together
    in_kernel = None if mask_later else mask
    strides = (*do.stride()[:3], *q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
    sizes = (max_q, max_k, scale, scale * LOG2_E)
    sums = torch.empty_like(dq, dtype=torch.float32) if together else None
    if sums is not None:
        launch(
            prepare_kernel, (triton.cdiv(q.shape[1], PREPARED_ROWS), heads, q.shape[0]), q,
            do, out, delta, sums, *do.stride()[:3], *out.stride()[:2], *lse.stride()[:2], q.shape[1],
            HEAD_DIM=head_dim, ROWS=PREPARED_ROWS, num_warps=4,
        )  # fmt: skip
    else:
        # dq goes first: it writes the row sums of do * out, which dk and dv need.
        launch(
            backward_q_kernel, (triton.cdiv(max_q, first.block_m), heads, _documents(q, cu_q)), q,
            do, out, *inputs, lse, delta, dq, *strides, *dq.stride()[:2], *statistics, *sizes,
            **_options(first, q, mask, cu_q),
        )  # fmt: skip
    launch(
        backward_kernel, (triton.cdiv(max_k, second.block_n), heads, _documents(q, cu_q)), q,
        do, q, k, v, in_kernel, cu_q, cu_k, lse, delta, sums, dk, dv,
        *strides, *dq.stride()[:2], *dk.stride()[:2], *statistics, *sizes,
        # The interpreter knows no sums through descriptors.
        WITH_DQ=together, REDUCE=together and second.tma and not interpreting(), **_options(second, q, in_kernel, cu_q),
    )  # fmt: skip
    if mask_later:
        dropped = ~mask[:, :, None, None]  # (B, M, 1, 1)
        dk.masked_fill_(dropped, 0.0)
        dv.masked_fill_(dropped, 0.0)
    return dq if sums is None else sums.to(q.dtype, copy=True), dk, dv


@_backward.register_fake
def _empty_backward(
    do: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *_others: object
) -> tuple[Tensor, Tensor, Tensor]:
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
    if q.dtype not in DTYPES:
        raise ValueError(f"dtype of q, k and v must be one of {DTYPES}; got {q.dtype}")
    if q.shape[-1] not in HEAD_DIMS:
        raise ValueError(f"head dim must be one of {HEAD_DIMS}; got {q.shape[-1]}")


def joint_attention(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Softmax attention of every query to every key of its batch item, scale ``K ** -0.5``.

    Args:
        q: ``(B, L, N, K)``, K one of :data:`HEAD_DIMS`, dtype one of :data:`DTYPES`, any strides with a contiguous
            last dimension.
        k: ``(B, M, N, K)``.
        v: ``(B, M, N, K)``.
        mask: ``(B, M)`` bool, true where a key counts. Without one less is computed: trim or pack instead.

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
