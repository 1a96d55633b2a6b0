"""Eager reference ops and the bundle that a model is built with."""

from omnihuman_core.ops.attention import attention, frame_cross_attention, softmax_attention
from omnihuman_core.ops.attention_choice import AttentionChoice, choose_attention, choose_ops
from omnihuman_core.ops.modulation import gated_residual, modulated_norm, residual_modulated_norm
from omnihuman_core.ops.norm import rms_norm
from omnihuman_core.ops.registry import eager_ops
from omnihuman_core.ops.rope import apply_rope, qk_norm_rope

__all__ = [
    "AttentionChoice",
    "apply_rope",
    "attention",
    "choose_attention",
    "choose_ops",
    "eager_ops",
    "frame_cross_attention",
    "gated_residual",
    "modulated_norm",
    "qk_norm_rope",
    "residual_modulated_norm",
    "rms_norm",
    "softmax_attention",
]
