"""Eager norms over the last axis."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """``x / sqrt(mean(x ** 2) + eps) * weight`` over the last axis, reduced in fp32, in the dtype of ``x``.

    Args:
        x: ``(..., K)``.
        weight: ``(K,)``.
        eps: Added to the mean square.
    """
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)
