"""Eager norms over the last axis."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """``x / sqrt(mean(x ** 2) + eps) * weight`` over the last axis, reduced in fp32, in the dtype of ``x``.

    Args:
        x: ``(..., K)``.
        weight: ``(K,)``, or more axes that broadcast over those of ``x``.
        eps: Added to the mean square.
    """
    if x.device.type == "cpu":
        # torch has no fused CPU kernel; this takes half as many passes over x as its composite does.
        wide = x.float()
        mean_square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square() / x.shape[-1]
        return (wide * (torch.rsqrt(mean_square + eps) * weight)).to(x.dtype)
    if weight.ndim > 1:
        return (F.rms_norm(x.float(), x.shape[-1:], None, eps) * weight).to(x.dtype)
    # Autocast on CUDA would give float32, which kernels that take q, k and v of one dtype refuse.
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps).to(x.dtype)
