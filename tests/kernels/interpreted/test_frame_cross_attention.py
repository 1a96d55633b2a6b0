import functools

import pytest
import torch

from omnihuman_kernels.frame_cross_attention import _backward, _forward, frame_cross_attention
from tests.kernels import references
from tests.kernels.agreement import DTYPES, assert_agrees

EPS = 1e-6
OURS = functools.partial(frame_cross_attention, eps=EPS)
REFERENCE = functools.partial(references.frame_cross_attention, eps=EPS)


def make(batch, frames, queries, keys, heads, head_dim):
    torch.manual_seed(0)
    q = torch.randn(batch, frames, queries, heads, head_dim, dtype=torch.float64)
    k, v = torch.randn(2, batch, frames, keys, heads, head_dim, dtype=torch.float64)
    return [q, k, v, 1 + 0.1 * torch.randn(head_dim, dtype=torch.float64)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1, 1, 16), (2, 3, 19, 5, 2, 32), (1, 2, 140, 17, 1, 64), (1, 1, 20, 32, 1, 128), (0, 2, 3, 4, 1, 16)],
)
def test_agrees_with_the_formula(shape, dtype):
    assert_agrees(OURS, REFERENCE, make(*shape), dtype)


def test_frames_do_not_hear_each_other():
    q, k, v, weight = (x.float() for x in make(1, 3, 4, 5, 2, 16))
    before = OURS(q, k, v, weight)
    k[:, 1] += 1
    v[:, 1] *= 2
    after = OURS(q, k, v, weight)
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert not torch.equal(before[:, 1], after[:, 1])


def test_packed_projections_and_broadcast_gradients():
    torch.manual_seed(0)
    kv = torch.randn(1, 2, 5, 2, 3, 16, dtype=torch.float64)
    q = torch.randn(1, 2, 3, 7, 16, dtype=torch.float64).transpose(2, 3)
    assert_agrees(OURS, REFERENCE, [q, *kv.unbind(3), torch.ones(16, dtype=torch.float64)], torch.float32)


def test_bfloat16_is_upcast():
    args = [x.bfloat16() for x in make(1, 2, 9, 5, 2, 32)]
    expected = REFERENCE(*(x.float() for x in args))
    torch.testing.assert_close(OURS(*args).float(), expected, rtol=2**-6, atol=2**-6)


def test_every_output_is_written():
    torch.use_deterministic_algorithms(True)
    try:
        args = [x.float() for x in make(2, 2, 9, 5, 3, 16)]
        out = _forward(*args, EPS)
        grads = _backward(out, *args, EPS)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(x.isfinite().all() for x in (out, *grads))


def test_opcheck_and_compile():
    args = [x.float().requires_grad_() for x in make(1, 2, 3, 4, 1, 16)]
    torch.library.opcheck(_forward, (*args, EPS))
    compiled = torch.compile(lambda *a: OURS(*a).square().sum(), fullgraph=True, backend="aot_eager")
    ours = torch.autograd.grad(compiled(*args), args)
    torch.testing.assert_close(ours, torch.autograd.grad(REFERENCE(*args).square().sum(), args), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "message"), [((1, 1, 2, 129, 1, 16), "1 to 128 audio tokens"), ((1, 1, 2, 3, 1, 24), "head dim must be")]
)
def test_wrong_shape_says_what_fits(shape, message):
    with pytest.raises(ValueError, match=message):
        OURS(*make(*shape))
