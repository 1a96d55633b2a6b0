"""Each planted fault makes exactly the kit test of its op fail."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from omnihuman_core.contracts.ops import Ops
from omnihuman_core.plugins import resolve_ops
from omnihuman_core.testing.ops import OpsConformance

EAGER = resolve_ops("eager")


class TestEager(OpsConformance):
    @pytest.fixture
    def ops(self) -> Ops:
        return EAGER


def ignores_the_mask(q, k, v, *, mask=None):
    return EAGER.attention(q, k, v)


def rotates_halves(q, k, q_weight, k_weight, cos, sin, **options):
    """The other common layout of rotary pairs."""
    order = torch.arange(q.shape[-1]).view(2, -1).T.flatten()
    weights = (
        w[order] if isinstance(w, torch.Tensor) else tuple(row[order] for row in w) for w in (q_weight, k_weight)
    )
    return EAGER.qk_norm_rope(q[..., order], k[..., order], *weights, cos, sin, **options)


def first_weight_everywhere(q, k, q_weight, k_weight, cos, sin, **options):
    weights = (w if isinstance(w, torch.Tensor) else (w[0] + 0 * sum(w),) * len(w) for w in (q_weight, k_weight))
    return EAGER.qk_norm_rope(q, k, *weights, cos, sin, **options)


def forgets_the_one(x, shift, scale, *, segments, eps):
    return EAGER.modulated_norm(x, shift, scale - 1, segments=segments, eps=eps)


def first_segment_everywhere(residual, x, gate, *, segments):
    return EAGER.gated_residual(residual, x, gate[:, :1].expand_as(gate), segments=segments)


def detaches_the_residual(residual, x, gate, shift, scale, *, segments, eps):
    """Right forward, wrong backward."""
    stream, normed = EAGER.residual_modulated_norm(residual, x, gate, shift, scale, segments=segments, eps=eps)
    return stream, EAGER.residual_modulated_norm(
        residual.detach() + 0 * residual, x, gate, shift, scale, segments=segments, eps=eps
    )[1]


def mixes_frames(q, k, v, q_weight, *, eps):
    return EAGER.frame_cross_attention(q, k.flip(1), v.flip(1), q_weight, eps=eps)


def keeps_fp32_for_no_one(q, k, v, *, mask=None):
    """Works in bf16 whatever it is given: the same formula at a lower precision."""
    low = [value.to(torch.bfloat16) for value in (q, k, v)]
    return EAGER.attention(*low, mask=mask).to(q.dtype)


FAULTS = [
    ("attention", ignores_the_mask, "test_1_attention"),
    ("attention", keeps_fp32_for_no_one, "test_1_attention"),
    ("qk_norm_rope", rotates_halves, "test_2_qk_norm_rope"),
    ("qk_norm_rope", first_weight_everywhere, "test_2_qk_norm_rope"),
    ("modulated_norm", forgets_the_one, "test_3_modulated_norm"),
    ("gated_residual", first_segment_everywhere, "test_4_gated_residual"),
    ("residual_modulated_norm", detaches_the_residual, "test_5_residual_modulated_norm"),
    ("frame_cross_attention", mixes_frames, "test_6_frame_cross_attention"),
]


@pytest.mark.parametrize(("op", "fault", "test"), FAULTS, ids=[fault[1].__name__ for fault in FAULTS])
def test_planted_fault_is_found(op, fault, test, failing):
    assert failing(OpsConformance(), ops=replace(EAGER, **{op: fault})) == {test}


def test_a_dict_is_no_bundle(failing):
    assert "test_0_bundle" in failing(OpsConformance(), ops={})
