import functools

import pytest
import torch

from omnihuman_kernels.rms_norm_silu import _backward, _forward, rms_norm_silu
from tests.kernels import references
from tests.kernels.agreement import DTYPES, assert_agrees

EPS = 1e-6
OURS = functools.partial(rms_norm_silu, eps=EPS)
REFERENCE = functools.partial(references.rms_norm_silu, eps=EPS)


def make(batch, channels, frames, height, width):
    torch.manual_seed(0)
    weight = 1 + 0.1 * torch.randn(channels, dtype=torch.float64)
    return [torch.randn(batch, channels, frames, height, width, dtype=torch.float64), weight]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (2, 5, 2, 3, 5), (1, 96, 1, 5, 9), (0, 4, 1, 2, 2)], ids=str)
def test_agrees_with_the_formula(shape, dtype):
    assert_agrees(OURS, REFERENCE, make(*shape), dtype)


def test_channels_last_stays_channels_last():
    x, weight = make(2, 6, 2, 3, 4)
    last = x.contiguous(memory_format=torch.channels_last_3d)
    assert_agrees(OURS, REFERENCE, [last, weight], torch.float32)
    assert OURS(last.float(), weight.float()).is_contiguous(memory_format=torch.channels_last_3d)


def test_any_other_layout_is_copied():
    x, weight = make(2, 6, 3, 3, 4)
    assert_agrees(OURS, REFERENCE, [x[:, :, 1:, :, ::2], weight], torch.float32)


@pytest.mark.parametrize("given", [False, True])
def test_padding_in_front(given):
    x, weight = make(2, 5, 2, 3, 3)
    earlier = torch.randn(2, 5, 2, 3, 3, dtype=torch.float64)

    def reference(x, weight, earlier):
        return (
            torch.cat([earlier if given else torch.zeros_like(earlier), REFERENCE(x, weight)], dim=2)
            + 0 * earlier.sum()
        )

    def ours(x, weight, earlier):
        return OURS(x, weight, front=2, earlier=earlier if given else None) + 0 * earlier.sum()

    assert_agrees(ours, reference, [x, weight, earlier], torch.float32)


def test_every_output_is_written():
    torch.use_deterministic_algorithms(True)
    try:
        x, weight = (t.float() for t in make(1, 7, 2, 3, 5))
        y = _forward(x, weight, None, 2, EPS)
        grads = _backward(y, x, weight, 2, EPS)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(t.isfinite().all() for t in (y, *grads))


def test_opcheck_and_compile():
    x, weight = (t.float().requires_grad_() for t in make(1, 4, 1, 2, 3))
    torch.library.opcheck(_forward, (x, weight, None, 1, EPS))
    compiled = torch.compile(lambda *a: OURS(*a).square().sum(), fullgraph=True, backend="aot_eager")
    ours = torch.autograd.grad(compiled(x, weight), (x, weight))
    torch.testing.assert_close(ours, torch.autograd.grad(REFERENCE(x, weight).square().sum(), (x, weight)))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"front": -1}, "front must be"), ({"front": 1, "earlier": torch.zeros(1, 4, 2, 2, 3)}, "earlier must be")],
)
def test_wrong_padding_is_named(options, message):
    x, weight = (t.float() for t in make(1, 4, 1, 2, 3))
    with pytest.raises(ValueError, match=message):
        OURS(x, weight, **options)
