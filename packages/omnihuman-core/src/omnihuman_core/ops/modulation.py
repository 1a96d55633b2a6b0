"""Eager adaLN modulation and gated residuals, per segment (one modulation row for each run of tokens)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from omnihuman_core.contracts import Segments


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, *, segments: Segments, eps: float) -> Tensor:
    """``LayerNorm(x) * (1 + scale) + shift`` without learned affine.

    Args:
        x: ``(B, L, D)``.
        shift: ``(B, len(segments), D)``.
        scale: ``(B, len(segments), D)``.
        segments: Lengths of the runs of tokens, in order; their sum is ``L``.
        eps: Epsilon of the norm.

    Returns:
        ``(B, L, D)``.
    """
    width = (x.shape[-1],)
    scale = 1 + scale
    if x.shape[0] == 1:
        # With one sample the modulation is the affine part of the norm itself: one pass instead of two.
        parts = [
            F.layer_norm(part, width, scale[0, row].to(x.dtype), shift[0, row].to(x.dtype), eps)
            for row, part in enumerate(x.split_with_sizes(segments, dim=1))
        ]
    else:
        normed = F.layer_norm(x, width, None, None, eps)
        parts = [
            torch.addcmul(shift[:, row, None], part, scale[:, row, None])
            for row, part in enumerate(normed.split_with_sizes(segments, dim=1))
        ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)  # (B, L, D)


def gated_residual(residual: Tensor, x: Tensor, gate: Tensor, *, segments: Segments) -> Tensor:
    """``residual + gate * x``.

    Args:
        residual: ``(B, L, D)``.
        x: ``(B, L, D)``.
        gate: ``(B, len(segments), D)``.
        segments: Lengths of the runs of tokens, in order; their sum is ``L``.

    Returns:
        ``(B, L, D)``.
    """
    pieces = zip(residual.split_with_sizes(segments, dim=1), x.split_with_sizes(segments, dim=1), strict=True)
    parts = [torch.addcmul(r, part, gate[:, row, None]) for row, (r, part) in enumerate(pieces)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)  # (B, L, D)


def residual_modulated_norm(
    residual: Tensor, x: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, *, segments: Segments, eps: float
) -> tuple[Tensor, Tensor]:
    """:func:`gated_residual`, then :func:`modulated_norm` of its result; returns both."""
    residual = gated_residual(residual, x, gate, segments=segments)
    return residual, modulated_norm(residual, shift, scale, segments=segments, eps=eps)
