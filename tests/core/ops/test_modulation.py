"""Modulation and gates against their formulas in fp64, with one and several segments, one and several samples."""

import pytest
import torch

from omnihuman_core.contracts import Ops
from omnihuman_core.ops import eager_ops, gated_residual, modulated_norm, residual_modulated_norm

CASES = [(1, (7,)), (3, (7,)), (1, (2, 5)), (3, (2, 4, 1))]


def per_token(rows, segments):
    """``(B, segments, D)`` -> ``(B, L, D)``."""
    return torch.cat([rows[:, i : i + 1].expand(-1, n, -1) for i, n in enumerate(segments)], dim=1).double()


def layer_norm(x, eps):
    x = x.double()
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()


@pytest.mark.parametrize(("batch", "segments"), CASES)
def test_modulated_norm(batch, segments):
    torch.manual_seed(0)
    x = torch.randn(batch, 7, 12) * 3 + 1
    shift, scale = torch.randn(2, batch, len(segments), 12)
    want = layer_norm(x, 1e-3) * (1 + per_token(scale, segments)) + per_token(shift, segments)
    out = modulated_norm(x, shift, scale, segments=segments, eps=1e-3)
    torch.testing.assert_close(out.double(), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("batch", "segments"), CASES)
def test_gated_residual(batch, segments):
    torch.manual_seed(0)
    residual, x = torch.randn(2, batch, 7, 12)
    gate = torch.randn(batch, len(segments), 12)
    want = residual.double() + per_token(gate, segments) * x.double()
    torch.testing.assert_close(gated_residual(residual, x, gate, segments=segments).double(), want)


def test_residual_modulated_norm_is_the_two_in_turn():
    torch.manual_seed(0)
    residual, x = torch.randn(2, 2, 7, 12)
    gate, shift, scale = torch.randn(3, 2, 2, 12)
    kept, out = residual_modulated_norm(residual, x, gate, shift, scale, segments=(3, 4), eps=1e-6)
    assert torch.equal(kept, gated_residual(residual, x, gate, segments=(3, 4)))
    assert torch.equal(out, modulated_norm(kept, shift, scale, segments=(3, 4), eps=1e-6))


def test_eager_bundle_is_complete():
    assert isinstance(eager_ops(), Ops)
