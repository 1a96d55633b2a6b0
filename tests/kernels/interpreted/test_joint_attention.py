import functools
from dataclasses import replace

import pytest
import torch

from omnihuman_kernels import _launch
from omnihuman_kernels.joint_attention import joint_attention, joint_attention_varlen
from omnihuman_kernels.joint_attention.op import _backward, _forward
from tests.kernels import references
from tests.kernels.agreement import DTYPES, assert_agrees, gradients


def make(batch, queries, keys, heads, head_dim):
    torch.manual_seed(0)
    q = torch.randn(batch, queries, heads, head_dim, dtype=torch.float64)
    return [q, *torch.randn(2, batch, keys, heads, head_dim, dtype=torch.float64)]


@pytest.fixture(params=["descriptors", "pointers"])
def path(request, monkeypatch):
    """Both ways to load: tensor-memory descriptors, and plain pointers."""
    if request.param == "pointers":
        plain = replace(_launch.INTERPRETED_TILE, tma=False, warp_specialize=False)
        monkeypatch.setattr(_launch, "INTERPRETED_TILE", plain)
    return request.param


@pytest.fixture(params=["one pass", "two passes"])
def passes(request, monkeypatch):
    """Both ways to go backward."""
    if request.param == "two passes":
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    return request.param


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1, 16), (1, 37, 70, 1, 64), (1, 33, 5, 1, 128), (0, 3, 3, 1, 16), (1, 0, 3, 1, 16)]
)
def test_agrees_with_the_formula(shape, dtype, passes):
    assert_agrees(joint_attention, references.attention, make(*shape), dtype)


def test_both_ways_to_load(path, passes):
    assert_agrees(joint_attention, references.attention, make(2, 35, 41, 2, 32), torch.float16)


def test_packed_projections():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 9, 3, 2, 16, dtype=torch.float64).unbind(2)
    assert not q.is_contiguous()
    assert_agrees(joint_attention, references.attention, [q, k, v], torch.float32)


@pytest.mark.parametrize("first", [0, 33])
def test_mask(first, passes):
    """Keys that count start in the first tile or, so that a whole tile is without any, in the second."""
    inputs = make(2, 5, 50, 1, 16)
    mask = torch.rand(2, 50) < 0.5
    mask[:, :first] = False
    mask[:, 40] = True
    assert_agrees(
        lambda q, k, v: joint_attention(q, k, v, mask=mask),
        lambda q, k, v: references.attention(q, k, v, mask),
        inputs,
        torch.float32,
    )


def test_a_sample_without_keys_gives_zeros(passes):
    q, k, v = (x.float().requires_grad_() for x in make(2, 4, 6, 1, 16))
    mask = torch.tensor([[True] * 6, [False] * 6])
    out = joint_attention(q, k, v, mask=mask)
    grads = torch.autograd.grad(out.square().sum(), (q, k, v))
    assert (out[1] == 0).all()
    assert all((g[1] == 0).all() and g[0].isfinite().all() for g in grads)
    assert (joint_attention(q, k[:, :0], v[:, :0]) == 0).all()


def test_masked_keys_with_infinite_weights_leave_zeros(passes):
    """A key that does not count may have any score, far above the largest of those that do."""
    q, k, v = (x.float() for x in make(1, 35, 41, 1, 16))
    mask = torch.ones(1, 41, dtype=torch.bool)
    mask[:, 3:9] = False
    k[:, 3:9] = 50 * q[:, 3:9]
    upstream = [torch.ones(1, 35, 1, 16)]
    got, expected = (gradients(f, [q, k, v], upstream) for f in (
        functools.partial(joint_attention, mask=mask), functools.partial(references.attention, mask=mask)
    ))  # fmt: skip
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_documents_do_not_see_each_other(path, passes):
    torch.manual_seed(0)
    lengths, others = (5, 0, 34), (3, 2, 40)
    q = torch.randn(sum(lengths), 2, 16, dtype=torch.float64)
    k, v = torch.randn(2, sum(others), 2, 16, dtype=torch.float64)
    starts = [torch.tensor([0, *torch.tensor(x).cumsum(0)], dtype=torch.int32) for x in (lengths, others)]

    def ours(q, k, v):
        return joint_attention_varlen(
            q, k, v, cu_seqlens_q=starts[0], cu_seqlens_k=starts[1], max_seqlen_q=34, max_seqlen_k=40
        )

    def one_by_one(q, k, v):
        parts = zip(q.split(lengths), k.split(others), v.split(others), strict=True)
        return torch.cat([references.attention(*(x[None] for x in part))[0] for part in parts])

    assert_agrees(ours, one_by_one, [q, k, v], torch.float32)


def test_bfloat16_is_upcast():
    q, k, v = (x.bfloat16() for x in make(1, 9, 40, 1, 32))
    expected = references.attention(q.float(), k.float(), v.float())
    torch.testing.assert_close(joint_attention(q, k, v).float(), expected, rtol=2**-6, atol=2**-6)


def test_large_scores_stay_finite():
    q, k, v = (x.float() for x in make(1, 5, 40, 1, 16))
    torch.testing.assert_close(
        joint_attention(q * 100, k, v), references.attention(q * 100, k, v), rtol=1e-4, atol=1e-4
    )


def test_keys_past_the_end_do_not_reach_gradients(path, passes):
    """Where every score is far below zero, the zeros that fill the last tile would weigh infinitely much."""
    q, k, v = (x.float() for x in make(1, 35, 41, 1, 16))
    upstream = [torch.ones(1, 35, 1, 16)]
    got, expected = (gradients(f, [q + 8, k - 8, v], upstream) for f in (joint_attention, references.attention))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_saved_results_may_have_gaps(passes):
    """Hooks on saved tensors may hand back the same numbers with other strides."""
    inputs = [x.float() for x in make(2, 5, 7, 2, 16)]
    truth = gradients(joint_attention, inputs, [torch.ones(2, 5, 2, 16)])
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0)):
        got = gradients(joint_attention, inputs, [torch.ones(2, 5, 2, 16)])
    torch.testing.assert_close(got, truth)


def test_starts_of_documents_may_have_gaps():
    q, k, v = (x[0].float() for x in make(1, 9, 9, 1, 16))
    starts = torch.tensor([0, 7, 4, 7, 9, 7], dtype=torch.int32)[::2]
    sizes = {"max_seqlen_q": 5, "max_seqlen_k": 5}
    got, expected = (
        joint_attention_varlen(q, k, v, cu_seqlens_q=cu, cu_seqlens_k=cu, **sizes) for cu in (starts, starts.clone())
    )
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(got[:4], references.attention(*(x[None, :4] for x in (q, k, v)))[0])


@pytest.mark.parametrize("one_pass", [True, False])
def test_every_output_is_written(one_pass, monkeypatch):
    monkeypatch.setattr("omnihuman_kernels.joint_attention.op.one_pass", lambda x: one_pass)
    torch.use_deterministic_algorithms(True)
    try:
        q, k, v = (x.float() for x in make(1, 35, 37, 1, 16))
        out, lse = _forward(q, k, v, None, None, None, 35, 37)
        grads = _backward(out, out, lse, q, k, v, None, None, None, 35, 37)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(x.isfinite().all() for x in (out, lse, *grads))


@pytest.mark.parametrize(
    ("row", "dtype", "head_dim", "expected"),
    [
        ("hopper", torch.bfloat16, 64, True),
        ("hopper", torch.float16, 16, True),
        ("hopper", torch.bfloat16, 128, False),
        ("hopper", torch.float32, 64, False),
        ("blackwell", torch.bfloat16, 64, False),
        ("plain", torch.float16, 64, False),
    ],
)
def test_one_pass_needs_a_tile_and_sums_through_descriptors(monkeypatch, row, dtype, head_dim, expected):
    monkeypatch.setattr(_launch, "architecture", lambda x: row)
    x = torch.empty(1, head_dim, dtype=dtype)
    assert _launch.one_pass(x) is expected
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert not _launch.one_pass(x)


def test_opcheck_and_compile():
    q, k, v = (x.float().requires_grad_() for x in make(1, 3, 5, 1, 16))
    torch.library.opcheck(_forward, (q, k, v, torch.ones(1, 5, dtype=torch.bool), None, None, 3, 5))
    compiled = torch.compile(lambda *a: joint_attention(*a).square().sum(), fullgraph=True, backend="aot_eager")
    ours = torch.autograd.grad(compiled(q, k, v), (q, k, v))
    plain = torch.autograd.grad(references.attention(q, k, v).square().sum(), (q, k, v))
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q, k, v: joint_attention(q[..., :8], k[..., :8], v[..., :8]), "head dim must be one of"),
        (lambda q, k, v: joint_attention(q, k[:, :2], v), "q, k and v must be"),
        (lambda q, k, v: joint_attention(q, k.half(), v), "one dtype"),
        (lambda q, k, v: joint_attention(q.double(), k.double(), v.double()), "dtype of q, k and v must be one of"),
        (lambda q, k, v: joint_attention(q, k, v, mask=torch.ones(1, 3)), "mask must be bool"),
        (
            functools.partial(
                lambda q, k, v, cu: joint_attention_varlen(
                    q[0], k[0], v[0], cu_seqlens_q=cu, cu_seqlens_k=cu, max_seqlen_q=4, max_seqlen_k=4
                ),
                cu=torch.tensor([0, 4]),
            ),
            "cu_seqlens_q must be int32",
        ),
    ],
)
def test_wrong_input_names_the_field(call, message):
    with pytest.raises(ValueError, match=message):
        call(*(x.float() for x in make(1, 4, 4, 1, 16)))
