"""Every backend that runs on a CPU against the softmax in float64; what cannot run says why."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends, _sdpa_kernel

from omnihuman_core.contracts import AttentionSupport
from omnihuman_core.ops import eager_ops
from omnihuman_core.ops.attention_backends import attention_backend, backend_names, describe_target, support_on, why_not
from omnihuman_core.ops.torch_attention import load_flex, load_sdpa, wrap_flex
from omnihuman_core.plugins import PluginError

from .fakes import CPU, HOPPER, Installed, explicit, inputs, key_mask

ON_CPU = ("sdpa", "sdpa_flash", "eager")
SIZES = [(2, 37, 53, 3, 24), (1, 1, 1, 1, 8), (3, 5, 129, 2, 65), (2, 64, 64, 1, 128)]


def test_the_backends_of_this_machine():
    target = describe_target(CPU, torch.float32, training=True)
    assert tuple(name for name in backend_names() if why_not(attention_backend(name), target) is None) == ON_CPU


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ON_CPU)
def test_outputs_and_gradients_are_those_of_the_softmax(name, size, masked):
    attention = attention_backend(name).load()
    batch, queries, keys, heads, head_dim = size
    mask = key_mask(batch, keys) if masked else None
    ours = inputs(batch, queries, keys, heads, head_dim, grad=True)
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    upstream = torch.randn(ours[0].shape, generator=torch.Generator().manual_seed(1))
    out, want = attention(*ours, mask=mask), explicit(*theirs, mask=mask)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), want, atol=2e-6, rtol=1e-5)
    (out * upstream).sum().backward()
    (want * upstream).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ON_CPU)
def test_half_precision_stays_within_its_rounding(name, dtype):
    q, k, v = inputs(dtype=dtype)
    mask = key_mask()
    out = attention_backend(name).load()(q, k, v, mask=mask)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), explicit(q, k, v, mask), atol=4 * torch.finfo(dtype).eps, rtol=0.02)


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_computes_attention(masked):
    """Uncompiled, which for a CPU is the only way that takes a mask; compiled it needs a GPU."""
    from torch.nn.attention.flex_attention import flex_attention

    q, k, v = inputs()
    mask = key_mask() if masked else None
    with torch.no_grad():
        out = wrap_flex(flex_attention)(q, k, v, mask=mask)
    torch.testing.assert_close(out.double(), explicit(q, k, v, mask), atol=2e-6, rtol=1e-5)


def test_flex_attention_stays_compiled_over_many_kinds_of_calls(monkeypatch):
    """After eight compilations of one function torch runs it uncompiled, holds all scores, and only logs it."""
    graphs, compile_with = [], torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda function: compile_with(function, dynamic=False, backend=lambda g, _: graphs.append(g) or g.forward),
    )
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=8), torch.no_grad():
        attention = load_flex()
        for length in range(2, 12):
            q, k, v = inputs(1, length, length, 1, 16)
            out = attention(q, k, v)
            assert len(graphs) == length - 1
            torch.testing.assert_close(out.double(), explicit(q, k, v), atol=2e-6, rtol=1e-5)
    torch._dynamo.reset()


def test_threads_leave_the_switches_of_torch_as_they_were(monkeypatch):
    compute = torch.nn.functional.scaled_dot_product_attention
    inside, entered, left = threading.Event(), threading.Event(), threading.Event()

    def first_in_first_out(*inputs, **named):
        """The worst order: the second thread comes while the first is inside, and leaves after it."""
        if threading.current_thread() is first:
            inside.set()
            # With turns nobody comes.
            entered.wait(0.5)
        else:
            entered.set()
            left.wait(0.5)
        return compute(*inputs, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", first_in_first_out)
    before = _cur_sdpa_kernel_backends()
    outputs = {}

    def run(kernel):
        outputs[kernel] = load_sdpa(kernel)(*inputs())
        left.set()

    first = threading.Thread(target=run, args=(SDPBackend.FLASH_ATTENTION,))
    second = threading.Thread(target=run, args=(SDPBackend.MATH,))
    try:
        first.start()
        assert inside.wait(60)
        second.start()
        first.join()
        second.join()
        assert set(_cur_sdpa_kernel_backends()) == set(before)
    finally:
        _sdpa_kernel(before)
    torch.testing.assert_close(*outputs.values(), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ON_CPU)
def test_a_compiled_graph_stays_whole(name):
    attention = attention_backend(name).load()
    q, k, v = inputs()
    mask = key_mask()
    compiled = torch.compile(lambda q, k, v: attention(q, k, v, mask=mask) + 1, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v), attention(q, k, v, mask=mask) + 1, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("sdpa_cudnn", {"dtype": torch.float32}, "takes bfloat16, float16, not float32"),
        ("sdpa_flash", {"capability": (7, 5)}, "needs compute capability 8.0 or newer, NVIDIA H100 80GB HBM3 has 7.5"),
        ("flash_attn_3", {"capability": (10, 0)}, "needs compute capability 9.0 to 9.0"),
        ("flash_attn_4", {"capability": (8, 0)}, "needs compute capability 9.0 to 11.9"),
        ("flash_attn_2", {}, "not installed (no module flash_attn)"),
        ("flash_attn_3", {}, "not installed (no module flash_attn_interface)"),
        ("flash_attn_4", {}, "not installed (no module flash_attn"),
        ("flex", {"device": CPU, "capability": None}, "does not run on cpu"),
    ],
)
def test_the_reason_is_plain(name, changes, reason, monkeypatch):
    for module in ("flash_attn", "flash_attn_interface"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    assert (why_not(attention_backend(name), replace(HOPPER, **changes)) or "").startswith(reason)


def test_what_comes_with_torch_is_declared_for_a_hopper():
    for name in ("sdpa", "sdpa_flash", "sdpa_cudnn", "sdpa_efficient", "flex", "eager"):
        assert why_not(attention_backend(name), HOPPER) is None
    support = support_on(attention_backend("sdpa_flash"), HOPPER)
    assert not support.key_mask
    assert 128 in support.head_dims
    assert 65 not in support.head_dims


def test_a_bundle_is_a_backend_of_its_name(monkeypatch):
    bundles = Installed(monkeypatch, fast=eager_ops())
    assert backend_names()[-1] == "fast"
    assert bundles.imported == []
    assert attention_backend("fast").load() is eager_ops().attention
    assert bundles.imported == ["fast"]


def test_a_bundle_is_judged_by_what_it_declares(monkeypatch):
    support = (AttentionSupport(device="cpu", backward=False),)
    Installed(monkeypatch, fast=replace(eager_ops(), attention_support=support))
    target = describe_target(CPU, torch.float32)
    assert why_not(attention_backend("fast"), target) is None
    assert why_not(attention_backend("fast"), replace(target, training=True)) == "has no backward on cpu"


def test_a_bundle_that_declares_nothing_is_tried(monkeypatch):
    def picky(q, k, v, *, mask=None):
        raise ValueError("needs a machine of its own\nand more")

    def forward_only(q, k, v, *, mask=None):
        return eager_ops().attention(q, k, v, mask=mask).detach()

    Installed(
        monkeypatch,
        picky=replace(eager_ops(), attention=picky),
        forward_only=replace(eager_ops(), attention=forward_only),
        broken=PluginError("cannot be imported: no such library"),
    )
    target = describe_target(CPU, torch.float32)
    assert why_not(attention_backend("picky"), target) == "needs a machine of its own"
    assert why_not(attention_backend("broken"), target) == "cannot be imported: no such library"
    assert why_not(attention_backend("forward_only"), target) is None
    assert "grad" in why_not(attention_backend("forward_only"), replace(target, training=True))


def test_the_installed_triton_bundle_asks_for_a_gpu():
    pytest.importorskip("triton")
    assert "does not run on cpu" in why_not(attention_backend("triton"), describe_target(CPU, torch.float32))


def test_a_bundle_may_not_take_the_name_of_a_backend(monkeypatch):
    Installed(monkeypatch, sdpa=eager_ops())
    with pytest.raises(PluginError, match="'sdpa' has the name of an attention backend"):
        backend_names()


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown backend 'sdqa'; known are auto, sdpa, sdpa_flash"):
        attention_backend("sdqa")


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="cuda:3 is not there"):
        describe_target("cuda:3", torch.float32)
