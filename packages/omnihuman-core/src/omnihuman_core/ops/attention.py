"""Eager attention: the reference that every faster kernel is compared with."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from omnihuman_core.ops.norm import rms_norm


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
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None, :])
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
    out = F.scaled_dot_product_attention(q, k, v)
    return rearrange(out, "(B t) N L K -> B t L N K", B=batch)  # (B, t, P, N, K)
