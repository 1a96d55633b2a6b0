"""``gated_residual``, ``modulated_norm`` and ``residual_modulated_norm``: one set of segments, one set of cases."""

import functools

import pytest
import torch

from omnihuman_kernels import gated_residual as gated
from omnihuman_kernels import modulated_norm as norm
from tests.kernels import references
from tests.kernels.agreement import DTYPES, assert_agrees

EPS = 1e-6
# (B, D, segments): one token, odd widths, an empty segment, an empty batch, chunks that end inside a segment.
CASES = [(1, 8, (1,)), (2, 37, (5, 0, 9)), (1, 96, (2, 1, 3, 4)), (0, 16, (3,)), (2, 16, (0,))]

OPS = {
    "gated_residual": (gated.gated_residual, references.gated_residual, {}, "rxg"),
    "modulated_norm": (norm.modulated_norm, references.modulated_norm, {"eps": EPS}, "xgg"),
    "residual_modulated_norm": (
        norm.residual_modulated_norm,
        references.residual_modulated_norm,
        {"eps": EPS},
        "rxggg",
    ),
}


def make(kinds, batch, width, segments):
    torch.manual_seed(0)
    rows = {"r": sum(segments), "x": sum(segments), "g": len(segments)}
    return [torch.randn(batch, rows[kind], width, dtype=torch.float64) for kind in kinds]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_the_formula(name, case, dtype):
    ours, reference, options, kinds = OPS[name]
    batch, width, segments = case
    options = {**options, "segments": segments}
    inputs = make(kinds, batch, width, segments)
    assert_agrees(functools.partial(ours, **options), functools.partial(reference, **options), inputs, dtype)


@pytest.mark.parametrize("name", OPS)
def test_slices_of_larger_tensors(name):
    ours, reference, options, kinds = OPS[name]
    options = {**options, "segments": (3, 4)}
    wide = make(kinds, 2, 48, (5, 6))
    rows = {"r": slice(2, 9), "x": slice(2, 9), "g": slice(0, 2)}
    inputs = [x[:, rows[kind], 16:32] for x, kind in zip(wide, kinds, strict=True)]
    assert not inputs[0].is_contiguous()
    assert_agrees(functools.partial(ours, **options), functools.partial(reference, **options), inputs, torch.float32)


@pytest.mark.parametrize("name", OPS)
def test_opcheck_and_compile(name):
    ours, reference, options, kinds = OPS[name]
    options = {**options, "segments": (2, 3)}
    raw = {"gated_residual": gated._forward, "modulated_norm": norm._forward}.get(name, norm._residual_forward)
    args = [x.float().requires_grad_() for x in make(kinds, 2, 16, (2, 3))]
    torch.library.opcheck(raw, (*args, [2, 3], *([EPS] if "eps" in options else [])))

    def loss(function, *args):
        out = function(*args, **options)
        return sum(x.square().sum() for x in (out if isinstance(out, tuple) else (out,)))

    compiled = torch.compile(functools.partial(loss, ours), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        torch.autograd.grad(compiled(*args), args),
        torch.autograd.grad(loss(reference, *args), args),
        rtol=1e-4,
        atol=1e-4,
    )


def test_a_wider_stream_stays_wide():
    """Under autocast the stream is float32 while branches are half precision."""
    residual, x, gate, shift, scale = (t.float() for t in make("rxggg", 1, 16, (2, 3)))
    half = x.half().requires_grad_()
    stream, y = norm.residual_modulated_norm(residual, half, gate, shift, scale, segments=(2, 3), eps=EPS)
    assert stream.dtype == y.dtype == torch.float32
    expected = references.residual_modulated_norm(residual, half.float(), gate, shift, scale, segments=(2, 3), eps=EPS)
    torch.testing.assert_close((stream, y), expected, rtol=1e-5, atol=1e-5)
    assert torch.autograd.grad(y.sum(), half)[0].dtype == torch.float16


@pytest.mark.parametrize("wanted", [0, 1])
def test_one_output_alone(wanted):
    args = [x.float().requires_grad_() for x in make("rxggg", 1, 16, (2, 3))]
    options = {"segments": (2, 3), "eps": EPS}
    grads = [
        torch.autograd.grad(f(*args, **options)[wanted].square().sum(), args, allow_unused=True, materialize_grads=True)
        for f in (norm.residual_modulated_norm, references.residual_modulated_norm)
    ]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


def test_every_output_is_written():
    torch.use_deterministic_algorithms(True)
    try:
        residual, x, gate, shift, scale = (t.float() for t in make("rxggg", 2, 37, (3, 0, 6)))
        segments = [3, 0, 6]
        out = norm._residual_forward(residual, x, gate, shift, scale, segments, EPS)
        grads = norm._residual_backward(out[0], out[1], out[0], x, gate, shift, scale, *out[2:], segments)
        more = gated._backward(out[1], x, gate, segments)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(t.isfinite().all() for t in (*out, *grads, *more))
    # Nobody's rows add to the gradient of an empty segment.
    assert (grads[2][:, 1] == 0).all()


@pytest.mark.parametrize("segments", [(), (2, 2), (-1, 6)])
def test_segments_must_cover_the_sequence(segments):
    x = torch.zeros(1, 5, 8)
    modulation = torch.zeros(1, len(segments), 8)
    with pytest.raises(ValueError, match="add up to the 5 tokens"):
        gated.gated_residual(x, x, modulation, segments=segments)


def test_wrong_modulation_is_named():
    x, modulation = torch.zeros(1, 5, 8), torch.zeros(1, 2, 8)
    with pytest.raises(ValueError, match=r"scale must have shape \(1, 2, 8\)"):
        norm.modulated_norm(x, modulation, modulation[:, :1], segments=(2, 3), eps=EPS)
