"""The eager bundle of ops."""

from __future__ import annotations

from omnihuman_core.contracts import Ops
from omnihuman_core.ops.attention import attention, frame_cross_attention
from omnihuman_core.ops.modulation import gated_residual, modulated_norm, residual_modulated_norm
from omnihuman_core.ops.rope import qk_norm_rope


def eager_ops() -> Ops:
    """Plain torch ops: run anywhere, and are what a kernel package is measured against."""
    return Ops(
        attention=attention,
        qk_norm_rope=qk_norm_rope,
        modulated_norm=modulated_norm,
        gated_residual=gated_residual,
        residual_modulated_norm=residual_modulated_norm,
        frame_cross_attention=frame_cross_attention,
    )
