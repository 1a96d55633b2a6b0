"""Norms against their definitions, the rotation against complex multiplication and against diffusers."""

import pytest
import torch

from omnihuman_core.ops import apply_rope, qk_norm_rope, rms_norm


def angles(length, pairs):
    return torch.randn(length, pairs) * 3


def test_rms_norm_is_its_definition():
    torch.manual_seed(0)
    x, weight = torch.randn(3, 5, 16) * 4, torch.rand(16)
    want = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 0.1).sqrt() * weight.double()
    torch.testing.assert_close(rms_norm(x, weight, eps=0.1).double(), want, atol=1e-6, rtol=1e-5)


def test_rms_norm_in_bf16_reduces_in_fp32():
    torch.manual_seed(0)
    x, weight = torch.randn(4, 256).bfloat16(), torch.ones(256)
    want = torch.nn.functional.rms_norm(x.float(), (256,), weight, 1e-6)
    out = rms_norm(x, weight, eps=1e-6)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), want.bfloat16().float(), atol=0, rtol=2**-8)


def test_rope_multiplies_pairs_by_a_unit_complex_number():
    torch.manual_seed(0)
    x, angle = torch.randn(2, 6, 3, 8, dtype=torch.float64).float(), angles(6, 4)
    number = torch.complex(x[..., 0::2].double(), x[..., 1::2].double()) * torch.exp(1j * angle.double())[:, None]
    out = apply_rope(x, angle.cos(), angle.sin())
    torch.testing.assert_close(out[..., 0::2].double(), number.real, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(out[..., 1::2].double(), number.imag, atol=1e-6, rtol=1e-5)


def test_rope_is_that_of_diffusers():
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    torch.manual_seed(0)
    x, angle = torch.randn(2, 6, 3, 8), angles(6, 4)
    table = angle.cos().repeat_interleave(2, dim=1), angle.sin().repeat_interleave(2, dim=1)
    want = embeddings.apply_rotary_emb(x, table, sequence_dim=1)
    torch.testing.assert_close(apply_rope(x, angle.cos(), angle.sin()), want, atol=1e-6, rtol=1e-5)


def test_scores_after_rope_depend_on_the_distance_only():
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    speed = torch.tensor([1.0, 0.3, 0.1, 0.01])

    def score(at_q, at_k):
        turned = [apply_rope(x, (at * speed).cos()[None], (at * speed).sin()[None]) for x, at in ((q, at_q), (k, at_k))]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(7.0, 3.0), score(104.0, 100.0), atol=1e-4, rtol=1e-4)
    assert not torch.isclose(score(7.0, 3.0), score(7.0, 4.0), atol=1e-3)


def test_qk_norm_rope_norms_then_turns_each_with_its_own_weight():
    torch.manual_seed(0)
    q, k, angle = torch.randn(2, 6, 3, 8), torch.randn(2, 6, 3, 8), angles(6, 4)
    q_weight, k_weight, table = torch.rand(8), torch.rand(8), (angle.cos(), angle.sin())
    out_q, out_k = qk_norm_rope(q, k, q_weight, k_weight, *table, eps=1e-6)
    rms = torch.nn.functional.rms_norm
    torch.testing.assert_close(out_q, apply_rope(rms(q, (8,), q_weight, 1e-6), *table), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(out_k, apply_rope(rms(k, (8,), k_weight, 1e-6), *table), atol=1e-6, rtol=1e-5)
