import functools

import pytest
import torch

from omnihuman_kernels import frame_cross_attention as module
from omnihuman_kernels.frame_cross_attention import _backward, _forward, frame_cross_attention
from tests.kernels import references
from tests.kernels.agreement import DTYPES, assert_agrees, gradients

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


@pytest.fixture
def tiles(monkeypatch):
    """Queries that count, in each tile of queries that a program looks at."""
    seen = []
    prologue = module._prologue

    def watch(q, weight, valid, *others):
        seen.append(int(valid.handle.data.sum()))
        return prologue(q, weight, valid, *others)

    monkeypatch.setattr(module, "_prologue", watch)
    return seen


def poisoned(x):
    """The same numbers, with what is no number around each frame: before its first token, after its last."""
    around = torch.full((*x.shape[:2], x.shape[2] + 64, *x.shape[3:]), torch.nan)
    around[:, :, 32:-32] = x
    return around[:, :, 32:-32]


# A tile has 16 queries here, and a forward program at most 8 tiles.
@pytest.mark.parametrize("queries", [1, 16, 17, 127, 128, 129, 144, 145, 255, 256, 257])
def test_programs_stop_at_the_last_query_of_a_frame(tiles, queries):
    """A tile too few leaves outputs unwritten and gradients short; one too many has no query and costs its products."""
    inputs = [x.float() for x in make(1, 2, queries, 5, 1, 16)]
    whole, rest = divmod(queries, 16)
    counted = sorted(2 * ([16] * whole + [rest] * (rest > 0)))
    torch.use_deterministic_algorithms(True)
    try:
        # Outputs start as what is no number, too.
        out = _forward(*(poisoned(x) for x in inputs[:3]), inputs[3], EPS)
        forward, tiles[:] = sorted(tiles), []
        grads = _backward(poisoned(torch.ones_like(out)), *(poisoned(x) for x in inputs[:3]), inputs[3], EPS)
    finally:
        torch.use_deterministic_algorithms(False)
    assert forward == sorted(tiles) == counted
    truth = gradients(REFERENCE, inputs, [torch.ones_like(out)])
    torch.testing.assert_close([out, *grads], truth, rtol=1e-4, atol=1e-5)


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
