"""Triton's own launcher, up to where it needs a GPU: what it asks the compiler for is what the tests here compile."""

from types import SimpleNamespace

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from omnihuman_kernels import _launch
from tests.kernels.compiling import record, source_of
from tests.kernels.test_ahead_of_time import (
    EVERYTHING,
    run_attention,
    run_everything,
    run_modulation,
    run_qk_norm_rope,
    run_rms_norm_silu,
)


@pytest.fixture
def asked(monkeypatch):
    """What the launcher asks the compiler for, on an H100 that is made up."""
    seen = []

    def note(kernel, key, signature, device, constexprs, options, attrs, warmup):
        # No kernel comes of it, so nothing is launched.
        seen.append((kernel, ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=attrs), options))

    monkeypatch.setattr(JITFunction, "_do_compile", note)
    gpu = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
    )
    monkeypatch.setattr(driver, "_active", gpu)
    yield seen
    for kernel, *_ in seen:
        kernel.device_caches.clear()


@pytest.mark.parametrize(
    "call",
    [
        lambda: run_everything(4099, 4, 64),
        lambda: run_everything(8208, 3, 128, torch.float16),
        lambda: run_everything(33, 1, 32, torch.float32),
        lambda: run_everything(1, 1, 16),
        run_qk_norm_rope,
        run_modulation,
        run_rms_norm_silu,
        run_attention,
        lambda: run_attention(64, masked=True),
        lambda: run_attention(128, packed=True),
    ],
    ids=["odd", "whole", "float32", "ones", "qk_norm_rope", "modulation", "silu", "attention", "mask", "packed"],
)
def test_the_launcher_asks_for_what_the_tests_compile(monkeypatch, asked, call):
    launched = record(monkeypatch, EVERYTHING, 90, call)
    for one in launched:
        # Takes the arguments and options as on a GPU, and refuses those that it does not know.
        _launch.launch(one.kernel, one.grid, one.args[0], *one.args, **one.options)
    assert len(asked) == len(launched) > 0
    for one, (kernel, source, options) in zip(launched, asked, strict=True):
        assert kernel is one.kernel
        mine = source_of(one)
        assert source.signature == mine.signature, kernel.__name__
        assert source.constants == mine.constants, kernel.__name__
        # The launcher also lists what it found nothing to say of.
        assert {path: known for path, known in source.attrs.items() if known} == mine.attrs, kernel.__name__
        assert options.enable_fp_fusion
        assert options.num_warps == one.options["num_warps"]
        assert options.num_stages == one.options.get("num_stages", options.num_stages)
