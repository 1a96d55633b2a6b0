"""The bundle of Triton ops, registered as ``triton`` under ``omnihuman.ops.v1``."""

from __future__ import annotations

from omnihuman_core.contracts.ops import AttentionSupport, Ops
from omnihuman_core.ops.attention_backends import NEWEST
from omnihuman_kernels.frame_cross_attention import frame_cross_attention
from omnihuman_kernels.gated_residual import gated_residual
from omnihuman_kernels.joint_attention import DTYPES, HEAD_DIMS, joint_attention
from omnihuman_kernels.modulated_norm import modulated_norm, residual_modulated_norm
from omnihuman_kernels.qk_norm_rope import qk_norm_rope


def triton_ops() -> Ops:
    """The ops of this package. They run on CUDA devices; on tensors elsewhere they raise ``ValueError``."""
    return Ops(
        attention=joint_attention,
        qk_norm_rope=qk_norm_rope,
        modulated_norm=modulated_norm,
        gated_residual=gated_residual,
        residual_modulated_norm=residual_modulated_norm,
        frame_cross_attention=frame_cross_attention,
        # Below 8.0 the compiler spills; GPUs newer than the tables take the plain tiles.
        attention_support=(
            AttentionSupport(device="cuda", capabilities=((8, 0), NEWEST), dtypes=DTYPES, head_dims=HEAD_DIMS),
        ),
    )
