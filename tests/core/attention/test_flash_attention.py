"""The calls into flash-attn, through stand-ins that have its public signatures.

flash-attn itself runs on a GPU only, and these tests do not run it: they check layouts, packing and what is passed.
"""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from omnihuman_core.ops.attention_backends import attention_backend, why_not
from omnihuman_core.ops.flash_attention import MODULES, load_flash_attention

from .fakes import HOPPER, explicit, inputs, key_mask


def packed(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k):
    """Attention of each sequence by itself, with the checks that the compiled functions make."""
    assert q.ndim == k.ndim == v.ndim == 3
    for cu, x, longest in ((cu_seqlens_q, q, max_seqlen_q), (cu_seqlens_k, k, max_seqlen_k)):
        assert cu.dtype == torch.int32
        assert cu.is_contiguous()
        assert cu[0] == 0
        assert cu[-1] == len(x)
        assert int(cu.diff().max()) <= longest
    bounds = zip(cu_seqlens_q[:-1], cu_seqlens_q[1:], cu_seqlens_k[:-1], cu_seqlens_k[1:], strict=True)
    parts = [explicit(q[None, a:b], k[None, c:d], v[None, c:d])[0] for a, b, c, d in bounds]
    return torch.cat(parts).to(q.dtype)


def module_2():
    def flash_attn_func(
        q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
        alibi_slopes=None, deterministic=False, return_attn_probs=False,
    ):  # fmt: skip
        assert (dropout_p, softmax_scale, causal, window_size) == (0.0, None, False, (-1, -1))
        return explicit(q, k, v).to(q.dtype)

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
        causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False,
        return_attn_probs=False, block_table=None,
    ):  # fmt: skip
        assert (dropout_p, softmax_scale, causal) == (0.0, None, False)
        return packed(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)

    return flash_attn_func, flash_attn_varlen_func


def module_3():
    def flash_attn_func(
        q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
        window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
        sm_margin=0, return_attn_probs=False,
    ):  # fmt: skip
        assert (softmax_scale, causal, qv) == (None, False, None)
        return explicit(q, k, v).to(q.dtype)

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None,
        softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
        window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
        sm_margin=0, return_attn_probs=False,
    ):  # fmt: skip
        assert (seqused_q, seqused_k, softmax_scale, causal) == (None, None, None, False)
        return packed(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)

    return flash_attn_func, flash_attn_varlen_func


def module_4():
    def flash_attn_func(
        q, k, v, softmax_scale=None, causal=False, window_size=(None, None), learnable_sink=None, softcap=0.0,
        num_splits=1, pack_gqa=None, deterministic=False, mask_mod=None, full_block_cnt=None, full_block_idx=None,
        mask_block_cnt=None, mask_block_idx=None, block_size=None, return_lse=False,
    ):  # fmt: skip
        assert (softmax_scale, causal, window_size) == (None, False, (None, None))
        return explicit(q, k, v).to(q.dtype), None

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None, seqused_q=None,
        seqused_k=None, page_table=None, softmax_scale=None, causal=False, window_size=(None, None),
        learnable_sink=None, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, score_mod=None,
        mask_mod=None, block_sparse_tensors=None, cu_total_m_blocks=None, cu_total_n_blocks=None, aux_tensors=None,
        return_lse=False,
    ):  # fmt: skip
        assert (seqused_q, seqused_k, page_table, softmax_scale, causal) == (None, None, None, None, False)
        return packed(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k), None

    return flash_attn_func, flash_attn_varlen_func


@pytest.fixture(params=[2, 3, 4], ids=["flash-attn 2", "flash-attn 3", "flash-attn 4"])
def version(request, monkeypatch):
    """A stand-in for one major version, found where the real one would be."""
    path = MODULES[request.param].split(".")
    for depth in range(1, len(path) + 1):
        module = ModuleType(".".join(path[:depth]))
        module.__path__ = []
        monkeypatch.setitem(sys.modules, module.__name__, module)
    module.flash_attn_func, module.flash_attn_varlen_func = {2: module_2, 3: module_3, 4: module_4}[request.param]()
    return request.param


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
def test_outputs_and_gradients(version, masked):
    attention = load_flash_attention(version)
    mask = key_mask() if masked else None
    ours = inputs(grad=True)
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    out, want = attention(*ours, mask=mask), explicit(*theirs, mask=mask)
    assert out.shape == ours[0].shape
    torch.testing.assert_close(out.double(), want, atol=1e-6, rtol=1e-5)
    upstream = torch.randn(out.shape)
    (out * upstream).sum().backward()
    (want * upstream).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-4)


def test_slices_of_a_joint_projection_are_taken(version):
    qkv = torch.randn(2, 11, 3, 4, 16)
    q, k, v = qkv.unbind(2)
    mask = key_mask(2, 11)
    out = load_flash_attention(version)(q, k, v, mask=mask)
    torch.testing.assert_close(out.double(), explicit(q, k, v, mask), atol=1e-6, rtol=1e-5)


def test_the_backend_is_found(version):
    assert why_not(attention_backend(f"flash_attn_{version}"), HOPPER) is None


def test_a_module_that_is_something_else(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    reason = why_not(attention_backend("flash_attn_2"), HOPPER)
    assert reason.startswith("flash_attn is no flash-attn 2")


def test_a_build_for_another_torch_is_reported(monkeypatch):
    def fail(name):
        raise ImportError("flash_attn_2_cuda.so: undefined symbol: _ZN3c10")

    monkeypatch.setattr("omnihuman_core.ops.flash_attention.import_module", fail)
    assert "undefined symbol" in why_not(attention_backend("flash_attn_2"), HOPPER)
