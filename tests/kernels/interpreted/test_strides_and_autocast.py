"""Calls as callers make them: parameters with gaps in memory, broadcast gradients, autocast, checkpointed blocks."""

import functools

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from omnihuman_kernels.frame_cross_attention import frame_cross_attention
from omnihuman_kernels.gated_residual import gated_residual
from omnihuman_kernels.joint_attention import joint_attention
from omnihuman_kernels.modulated_norm import modulated_norm, residual_modulated_norm
from omnihuman_kernels.qk_norm_rope import qk_norm_rope
from omnihuman_kernels.rms_norm_silu import rms_norm_silu
from tests.kernels.agreement import gradients

EPS = 1e-6
X, MODULATION, WEIGHT = (1, 6, 32), (1, 2, 32), (16,)
HEADS, FRAMES, VIDEO = (1, 6, 2, 16), (1, 2, 3, 2, 16), (1, 16, 2, 2, 3)


def tables():
    angles = torch.linspace(0, 1, 48).view(6, 8)
    return angles.cos(), angles.sin()


# Each op as a function of the tensors that get gradients, and their shapes.
OPS = {
    "qk_norm_rope": (lambda q, k, a, b: qk_norm_rope(q, k, a, b, *tables(), eps=EPS), [HEADS, HEADS, WEIGHT, WEIGHT]),
    "modulated_norm": (lambda *x: modulated_norm(*x, segments=(2, 4), eps=EPS), [X, MODULATION, MODULATION]),
    "gated_residual": (lambda *x: gated_residual(*x, segments=(2, 4)), [X, X, MODULATION]),
    "residual_modulated_norm": (
        lambda *x: residual_modulated_norm(*x, segments=(2, 4), eps=EPS),
        [X, X, MODULATION, MODULATION, MODULATION],
    ),
    "attention": (joint_attention, [HEADS] * 3),
    "frame_cross_attention": (lambda *x: frame_cross_attention(*x, eps=EPS), [FRAMES, FRAMES, FRAMES, WEIGHT]),
    "rms_norm_silu": (lambda *x: rms_norm_silu(*x, eps=EPS), [VIDEO, WEIGHT]),
}


def with_gaps(x):
    """The same numbers, every second one in memory."""
    apart = torch.stack([x, torch.full_like(x, torch.nan)], dim=-1)[..., 0]
    assert apart.stride(-1) == 2
    return apart


def outputs(op, inputs):
    outs = op(*inputs)
    return outs if isinstance(outs, tuple) else (outs,)


@pytest.mark.parametrize("name", OPS)
def test_gaps_between_numbers_change_nothing(name):
    torch.manual_seed(0)
    op, shapes = OPS[name]
    inputs = [torch.randn(shape) for shape in shapes]
    upstream = [torch.randn_like(y) for y in outputs(op, inputs)]
    expected = gradients(op, inputs, upstream)
    got = gradients(op, [with_gaps(x) for x in inputs], [with_gaps(g) for g in upstream])
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", OPS)
def test_gradients_may_be_one_number_for_all(name):
    torch.manual_seed(0)
    op, shapes = OPS[name]
    inputs = [torch.randn(shape) for shape in shapes]
    shapes = [y.shape for y in outputs(op, inputs)]
    expected = gradients(op, inputs, [torch.full(shape, 0.5) for shape in shapes])
    got = gradients(op, inputs, [torch.tensor(0.5).expand(shape) for shape in shapes])
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", OPS)
def test_ops_may_be_computed_again_in_the_backward_pass(name):
    """As blocks are that keep no activations; what an op saved may be asked for once then."""
    torch.manual_seed(0)
    op, shapes = OPS[name]
    inputs = [torch.randn(shape) for shape in shapes]
    upstream = [torch.randn_like(y) for y in outputs(op, inputs)]
    again = functools.partial(checkpoint, op, use_reentrant=False)
    torch.testing.assert_close(gradients(again, inputs, upstream), gradients(op, inputs, upstream), rtol=0, atol=0)


@pytest.mark.parametrize("name", OPS)
def test_autocast_casts_nothing(name):
    """Statistics and tables are float32 by intent: the ops compute in what they are given, forward and backward."""
    torch.manual_seed(0)
    op, shapes = OPS[name]
    inputs = [torch.randn(shape).half() if len(shape) > 1 else torch.randn(shape) for shape in shapes]
    upstream = [torch.randn_like(y) for y in outputs(op, inputs)]
    expected = gradients(op, inputs, upstream)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = gradients(op, inputs, upstream)
    assert [x.dtype for x in got] == [x.dtype for x in expected]
    torch.testing.assert_close(got, expected)
