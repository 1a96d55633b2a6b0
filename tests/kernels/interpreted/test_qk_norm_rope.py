import functools

import pytest
import torch

from omnihuman_kernels.qk_norm_rope import _backward, _forward, qk_norm_rope
from tests.kernels import references
from tests.kernels.agreement import DTYPES, assert_agrees

EPS = 1e-6
OURS = functools.partial(qk_norm_rope, eps=EPS)
REFERENCE = functools.partial(references.qk_norm_rope, eps=EPS)


def make(batch, length, heads, head_dim, *, packed=False):
    torch.manual_seed(0)
    if packed:
        q, k, _ = torch.randn(batch, length, 3, heads, head_dim, dtype=torch.float64).unbind(2)
    else:
        q, k = torch.randn(2, batch, length, heads, head_dim, dtype=torch.float64).unbind(0)
    angles = torch.randn(length, head_dim // 2, dtype=torch.float64)
    # A text token has no position.
    angles[-1:] = 0
    weights = [1 + 0.1 * torch.randn(head_dim, dtype=torch.float64) for _ in range(2)]
    return [q, k, *weights, angles.cos(), angles.sin()]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 16), (2, 7, 3, 64), (1, 19, 5, 128), (0, 5, 2, 32), (2, 0, 2, 32)])
def test_agrees_with_the_formula(shape, dtype):
    inputs = make(*shape)
    # The tables get no gradient: they are positions, not parameters.
    assert_agrees(
        lambda q, k, a, b: OURS(q, k, a, b, *(x.float() for x in inputs[4:])),
        lambda q, k, a, b: REFERENCE(q, k, a, b, *(x.float().to(q.dtype) for x in inputs[4:])),
        inputs[:4],
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "segments"),
    [((2, 9, 3, 16), (6, 3)), ((1, 13, 5, 64), (1, 0, 12)), ((1, 4, 3, 16), (0, 4)), ((2, 7, 3, 32), (7,))],
)
def test_streams_have_weights_of_their_own(shape, segments, dtype):
    q, k, _, _, cos, sin = make(*shape)
    weights = [1 + 0.1 * torch.randn(shape[3], dtype=torch.float64) for _ in range(2 * len(segments))]
    count = len(segments)

    def ours(q, k, *w):
        return OURS(q, k, w[:count], w[count:], cos.float(), sin.float(), segments=segments)

    def reference(q, k, *w):
        tables = (x.float().to(q.dtype) for x in (cos, sin))
        return REFERENCE(q, k, w[:count], w[count:], *tables, segments=segments)

    assert_agrees(ours, reference, [q, k, *weights], dtype)


def test_reads_packed_projections_in_place():
    inputs = make(2, 5, 3, 32, packed=True)
    assert not inputs[0].is_contiguous()
    assert_agrees(
        lambda q, k: OURS(q, k, *(x.float() for x in inputs[2:])),
        lambda q, k: REFERENCE(q, k, *(x.float().to(q.dtype) for x in inputs[2:])),
        inputs[:2],
        torch.float32,
    )  # fmt: skip


def test_a_broadcast_upstream_gradient():
    q, k, a, b, cos, sin = (x.float() for x in make(1, 4, 2, 16))
    q.requires_grad_()
    ours = torch.autograd.grad(OURS(q, k, a, b, cos, sin)[0].sum(), q)[0]
    plain = torch.autograd.grad(REFERENCE(q, k, a, b, cos, sin)[0].sum(), q)[0]
    torch.testing.assert_close(ours, plain)


def test_every_output_is_written(monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    try:
        q, k, a, b, cos, sin = (x.float() for x in make(2, 9, 3, 16))
        args = (q, k, [a, b], [b, a], cos, sin)
        out = _forward(*args, [4, 5], EPS)
        grads = _backward(out[0], out[1], *args, *out[2:], [4, 5])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(x.isfinite().all() for x in (*out, *grads))


def test_bfloat16_is_normalised():
    args = [x.bfloat16() if i < 4 else x.float() for i, x in enumerate(make(1, 6, 2, 64))]
    # The interpreter cuts bfloat16 off where a GPU rounds, so the bound is one unit in the last place.
    for ours, plain in zip(OURS(*args), REFERENCE(*(x.float() for x in args)), strict=True):
        torch.testing.assert_close(ours.float(), plain, rtol=2**-7, atol=1e-3)


def test_opcheck():
    q, k, a, b, cos, sin = (x.float().requires_grad_(i < 4) for i, x in enumerate(make(2, 3, 2, 16)))
    torch.library.opcheck(_forward, (q, k, [a], [b], cos, sin, [3], EPS))
    torch.library.opcheck(_forward, (q, k, [a, b], [b, a], cos, sin, [1, 2], EPS))


def test_compiles_without_a_graph_break():
    args = [x.float().requires_grad_(i < 4) for i, x in enumerate(make(2, 3, 2, 16))]
    compiled = torch.compile(lambda *a: sum(x.square().sum() for x in OURS(*a)), fullgraph=True, backend="aot_eager")
    ours = torch.autograd.grad(compiled(*args), args[:4])
    plain = torch.autograd.grad(sum(x.square().sum() for x in REFERENCE(*args)), args[:4])
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("weight", "segments", "message"),
    [
        (lambda w: w, (1, 2), "a tuple of tensors with them"),
        (lambda w: (w, w), None, "one tensor without segments"),
        (lambda w: (w,), (1, 2), "each of the 2 segments"),
        (lambda w: (w, w), (1, 1), "add up to the 3 tokens"),
    ],
)
def test_weights_and_segments_belong_together(weight, segments, message):
    q, k, a, b, cos, sin = (x.float() for x in make(1, 3, 2, 16))
    with pytest.raises(ValueError, match=message):
        OURS(q, k, weight(a), weight(b), cos, sin, segments=segments)


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (1, lambda k: k[:, :2], "one shape"),
        (2, lambda w: w[:3], "q_weight"),
        (4, lambda c: c.double(), "cos must be float32"),
        (5, lambda s: s[:1], "sin must be float32"),
    ],
)
def test_wrong_input_names_the_field(index, change, message):
    args = [x.float() for x in make(1, 3, 2, 16)]
    args[index] = change(args[index])
    with pytest.raises(ValueError, match=message):
        OURS(*args)


def test_a_sequence_too_long_for_the_addresses_of_its_tables_is_refused():
    """At head dim 128 a table of 2^25 positions has 2^31 numbers."""
    q, table = torch.empty(1, 2**25, 1, 128, device="meta"), torch.empty(2**25, 64, device="meta")
    weight = torch.empty(128, device="meta")
    with pytest.raises(ValueError, match="q has 33554432 tokens; split the sequence to 33554416 or fewer"):
        qk_norm_rope(q, q, weight, weight, table, table, eps=EPS)
