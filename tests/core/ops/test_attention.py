"""Attention against the softmax written out, in fp64."""

import pytest
import torch

from omnihuman_core.ops import attention, frame_cross_attention


def explicit(q, k, v, mask=None):
    scores = torch.einsum("blnk,bmnk->bnlm", q.double(), k.double()) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    weights = scores.exp() / scores.exp().sum(dim=-1, keepdim=True)
    return torch.einsum("bnlm,bmnk->blnk", weights, v.double())


def draw(*shape, grad=False):
    return torch.randn(*shape).requires_grad_(grad)


@pytest.mark.parametrize("grad", [False, True], ids=["fused", "explicit scores"])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_the_softmax(grad, masked):
    torch.manual_seed(0)
    q, k, v = draw(2, 5, 3, 8, grad=grad), draw(2, 7, 3, 8), draw(2, 7, 3, 8)
    mask = torch.tensor([[True] * 7, [True, False, True, True, False, False, True]]) if masked else None
    torch.testing.assert_close(attention(q, k, v, mask=mask).double(), explicit(q, k, v, mask), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_gradients_are_those_of_the_softmax(masked):
    torch.manual_seed(0)
    mask = torch.tensor([[True] * 4, [True, True, False, False]]) if masked else None
    ours = [draw(2, 4, 2, 8, grad=True) for _ in range(3)]
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    weight = torch.randn(2, 4, 2, 8)
    (attention(*ours, mask=mask) * weight).sum().backward()
    (explicit(*theirs, mask=mask) * weight).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-4)


def test_masked_keys_have_no_influence():
    torch.manual_seed(0)
    q, k, v = draw(1, 4, 2, 8), draw(1, 6, 2, 8), draw(1, 6, 2, 8)
    mask = torch.tensor([[True, True, True, True, False, False]])
    before = attention(q, k, v, mask=mask)
    k[:, 4:], v[:, 4:] = 50.0, -50.0
    assert torch.equal(before, attention(q, k, v, mask=mask))


@pytest.mark.parametrize("grad", [False, True], ids=["fused", "explicit scores"])
def test_frame_cross_attention_stays_inside_its_frame(grad):
    torch.manual_seed(0)
    q, k, v = draw(2, 3, 5, 2, 8, grad=grad), draw(2, 3, 4, 2, 8), draw(2, 3, 4, 2, 8)
    weight = torch.rand(8) + 0.5
    out = frame_cross_attention(q, k, v, weight, eps=1e-6)
    normed = q.double() / (q.double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    for frame in range(3):
        want = explicit(normed[:, frame], k[:, frame], v[:, frame])
        torch.testing.assert_close(out[:, frame].double(), want, atol=1e-6, rtol=1e-5)
