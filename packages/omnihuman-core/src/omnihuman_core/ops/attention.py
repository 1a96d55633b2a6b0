"""Eager attention: the reference that every faster kernel is compared with."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from omnihuman_core.ops.norm import rms_norm

_EXPLICIT_KEYS = 1024


def writes_scores(device: torch.device, keys: int) -> bool:
    """Whether training attention over this many keys on ``device`` writes its scores out, instead of one fused kernel.

    The backward of torch's fused CPU kernel takes more than twice as long as plain products on short sequences.
    """
    return device.type == "cpu" and keys <= _EXPLICIT_KEYS


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention in the layout ``(B, N, L, K)``, with a mask that broadcasts to ``(B, N, L, M)``."""
    if q.requires_grad and writes_scores(q.device, k.shape[2]):
        scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))  # (B, N, L, M)
        if mask is not None:
            scores = scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, -torch.inf)
        return torch.matmul(scores.softmax(dim=-1), v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def attention(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Non-causal softmax attention with scale ``K ** -0.5``.

    Args:
        q: ``(B, L, N, K)``.
        k: ``(B, M, N, K)``.
        v: ``(B, M, N, K)``.
        mask: ``(B, M)`` bool, true where a key counts; at least one key per sample.

    Returns:
        ``(B, L, N, K)``.
    """
    q, k, v = (rearrange(x, "B L N K -> B N L K") for x in (q, k, v))  # (B, N, L, K)
    out = _attend(q, k, v, None if mask is None else mask[:, None, None, :])
    return rearrange(out, "B N L K -> B L N K")  # (B, L, N, K)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """:func:`attention` with the scores written out: the formula that every other implementation is compared with.

    Holds ``B * N * L * M`` scores, so it is for short sequences.
    """
    q, k, v = (rearrange(x, "B L N K -> B N L K") for x in (q, k, v))  # (B, N, L, K)
    scores = torch.matmul(q, k.transpose(-1, -2)) * q.shape[-1] ** -0.5  # (B, N, L, M)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
    out = torch.matmul(scores.softmax(dim=-1), v)
    return rearrange(out, "B N L K -> B L N K")  # (B, L, N, K)


def frame_cross_attention(q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor, *, eps: float) -> Tensor:
    """Cross-attention of the tokens of each latent frame to the audio tokens of that frame (paper section 3.2).

    No mask is needed: frames are moved to the batch.

    Args:
        q: ``(B, t, P, N, K)``, before its RMSNorm.
        k: ``(B, t, A, N, K)``, already normalised.
        v: ``(B, t, A, N, K)``.
        q_weight: ``(K,)`` weight of the RMSNorm of q.
        eps: Epsilon of that norm.

    Returns:
        ``(B, t, P, N, K)``.
    """
    batch = q.shape[0]
    q = rms_norm(q, q_weight, eps=eps)
    q, k, v = (rearrange(x, "B t L N K -> (B t) N L K") for x in (q, k, v))  # (B * t, N, L, K)
    out = _attend(q, k, v)
    return rearrange(out, "(B t) N L K -> B t L N K", B=batch)  # (B, t, P, N, K)
