"""Eager rotary embedding of interleaved pairs, after the norm of q and k (HunyuanVideo's layout)."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from omnihuman_core.contracts.ops import HeadWeight, Segments
from omnihuman_core.ops.norm import rms_norm


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs ``(x[2i], x[2i + 1])`` by the angle whose cosine and sine are given.

    Args:
        x: ``(B, L, N, K)``.
        cos: ``(L, K / 2)`` fp32.
        sin: ``(L, K / 2)`` fp32.

    Returns:
        ``(B, L, N, K)`` in the dtype of ``x``; the product is taken in fp32.
    """
    pairs = torch.view_as_complex(rearrange(x.float(), "B L N (K two) -> B L N K two", two=2))  # (B, L, N, K / 2)
    turned = torch.view_as_real(pairs * torch.complex(cos, sin)[:, None])
    return turned.flatten(-2).to(x.dtype)  # (B, L, N, K)


def _rows(weight: HeadWeight, segments: Segments | None) -> Tensor:
    """A weight for each token, ``(L, 1, K)``, or the one ``(K,)`` for all."""
    if isinstance(weight, Tensor):
        return weight
    if segments is None:
        raise ValueError("qk_norm_rope needs segments where weights are tuples")
    rows = [row.expand(length, 1, -1) for row, length in zip(weight, segments, strict=True)]
    return torch.cat(rows)  # (L, 1, K)


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: HeadWeight,
    k_weight: HeadWeight,
    cos: Tensor,
    sin: Tensor,
    *,
    eps: float,
    segments: Segments | None = None,
) -> tuple[Tensor, Tensor]:
    """RMSNorm of each head of q and k, then :func:`apply_rope`.

    Args:
        q: ``(B, L, N, K)``.
        k: ``(B, L, N, K)``.
        q_weight: ``(K,)``, or a tuple of them, one a segment.
        k_weight: Like ``q_weight``.
        cos: ``(L, K / 2)`` fp32; 1 where a token is not rotated.
        sin: ``(L, K / 2)`` fp32; 0 where a token is not rotated.
        eps: Epsilon of the norms.
        segments: With tuples of weights, the lengths of the runs of tokens that they stand for.
    """
    return (
        apply_rope(rms_norm(q, _rows(q_weight, segments), eps=eps), cos, sin),
        apply_rope(rms_norm(k, _rows(k_weight, segments), eps=eps), cos, sin),
    )
