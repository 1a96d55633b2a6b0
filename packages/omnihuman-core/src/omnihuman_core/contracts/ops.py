"""Contract of the ops that a kernel package may replace: one frozen bundle, resolved once, at model construction.

Layouts: ``(B, L, N, K)`` for heads, ``(B, L, D)`` for tokens. *Segments*: tokens that share one modulation lie side
by side; ``segments`` gives their lengths, in order, and a modulation tensor has one row a segment,
``(B, len(segments), D)``.

Registered under ``omnihuman.ops.v1`` as a function without arguments that returns :class:`Ops`. Every op agrees with
the eager reference of ``omnihuman_core.ops`` within twice the error that the reference itself makes at the same
precision (``omnihuman_core.testing.ops``), forward and backward.

Stability: 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Segments = tuple[int, ...]
HeadWeight = Tensor | tuple[Tensor, ...]


class Attention(Protocol):
    """Non-causal softmax attention, scale ``K ** -0.5``."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """``q (B, L, N, K)``, ``k, v (B, M, N, K)``, ``mask (B, M)`` true where a key counts -> ``(B, L, N, K)``."""
        ...


@dataclass(frozen=True, kw_only=True)
class AttentionSupport:
    """What an implementation of :class:`Attention` takes on one type of device.

    Attributes:
        device: Type of the device, such as ``cpu`` or ``cuda``; None for every type.
        capabilities: Lowest and highest compute capability, both included; None where it does not matter.
        dtypes: Dtypes of q, k and v.
        head_dims: Widths ``K`` of a head; None for every width.
        key_mask: Whether ``mask`` may be given.
        backward: Whether gradients reach q, k and v.
    """

    device: str | None
    capabilities: tuple[tuple[int, int], tuple[int, int]] | None = None
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16)
    head_dims: Sequence[int] | None = None
    key_mask: bool = True
    backward: bool = True


class QKNormRope(Protocol):
    """Per-head RMSNorm of q and k, then rotary embedding of interleaved pairs.

    Streams that have weights of their own lie side by side: with ``segments``, a weight is a tuple with one tensor a
    segment.
    """

    def __call__(
        self,
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
        """``q, k (B, L, N, K)``, weights ``(K,)``, ``cos, sin (L, K / 2)`` fp32 -> normalised, rotated q and k."""
        ...


class ModulatedNorm(Protocol):
    """``LayerNorm(x) * (1 + scale) + shift``, without learned affine, per segment."""

    def __call__(self, x: Tensor, shift: Tensor, scale: Tensor, *, segments: Segments, eps: float) -> Tensor:
        """``x (B, L, D)``, ``shift, scale (B, len(segments), D)`` -> ``(B, L, D)``."""
        ...


class GatedResidual(Protocol):
    """``residual + gate * x``, per segment."""

    def __call__(self, residual: Tensor, x: Tensor, gate: Tensor, *, segments: Segments) -> Tensor:
        """``residual, x (B, L, D)``, ``gate (B, len(segments), D)`` -> ``(B, L, D)``."""
        ...


class ResidualModulatedNorm(Protocol):
    """:class:`GatedResidual`, then :class:`ModulatedNorm` of its result, in one pass."""

    def __call__(
        self, residual: Tensor, x: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, *, segments: Segments, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Returns the new residual stream and its modulated norm, both ``(B, L, D)``."""
        ...


class FrameCrossAttention(Protocol):
    """Cross-attention inside each latent frame, with RMSNorm of q as a prologue (k comes normalised)."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor, *, eps: float) -> Tensor:
        """``q (B, t, P, N, K)``, ``k, v (B, t, A, N, K)``, ``q_weight (K,)`` -> ``(B, t, P, N, K)``."""
        ...


@dataclass(frozen=True, kw_only=True)
class Ops:
    """The ops of one model.

    ``attention_support`` says where ``attention`` runs, one entry a type of device. A bundle that leaves it out is
    asked by one small call when its attention is chosen.
    """

    attention: Attention
    qk_norm_rope: QKNormRope
    modulated_norm: ModulatedNorm
    gated_residual: GatedResidual
    residual_modulated_norm: ResidualModulatedNorm
    frame_cross_attention: FrameCrossAttention
    attention_support: tuple[AttentionSupport, ...] = ()
