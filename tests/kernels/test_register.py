"""What needs no interpreter: registration, the device check, and what an import may touch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from omnihuman_core.ops.attention_backends import Target, attention_backend, why_not
from omnihuman_core.plugins import resolve_ops
from omnihuman_kernels import joint_attention
from omnihuman_kernels.rms_norm_silu import rms_norm_silu
from tests.kernels.compiling import ARCHITECTURES


def calls(ops):
    x, modulation = torch.zeros(1, 4, 16), torch.zeros(1, 1, 16)
    heads, weight, table = x.unflatten(-1, (1, 16)), torch.ones(16), torch.ones(4, 8)
    return {
        "attention": lambda: ops.attention(heads, heads, heads),
        "qk_norm_rope": lambda: ops.qk_norm_rope(heads, heads, weight, weight, table, table, eps=1e-6),
        "modulated_norm": lambda: ops.modulated_norm(x, modulation, modulation, segments=(4,), eps=1e-6),
        "gated_residual": lambda: ops.gated_residual(x, x, modulation, segments=(4,)),
        "residual_modulated_norm": lambda: ops.residual_modulated_norm(
            x, x, modulation, modulation, modulation, segments=(4,), eps=1e-6
        ),
        "frame_cross_attention": lambda: ops.frame_cross_attention(
            heads[None], heads[None], heads[None], weight, eps=1e-6
        ),
        "rms_norm_silu": lambda: rms_norm_silu(heads[None], torch.ones(1), eps=1e-6),
    }


@pytest.mark.parametrize("name", calls(None))
def test_cpu_tensors_are_refused_in_one_line(name):
    with pytest.raises(ValueError, match="triton ops need a CUDA device; choose ops='eager'") as error:
        calls(resolve_ops("triton"))[name]()
    assert "\n" not in str(error.value)


def test_graphs_can_be_traced_without_a_device():
    """Shapes and types come from the fake implementations, so models can be built and exported on meta tensors."""
    q = torch.empty(2, 5, 3, 64, device="meta", dtype=torch.bfloat16)
    out = joint_attention.joint_attention(q, q, q)
    assert (out.shape, out.dtype, out.device.type) == (q.shape, q.dtype, "meta")


def takes(dtype, head_dim):
    """Whether attention takes a dtype and a width of heads, with a key mask and gradients; meta tensors need no GPU."""
    q = torch.empty(1, 3, 2, head_dim, device="meta", dtype=dtype, requires_grad=dtype.is_floating_point)
    mask = torch.ones(1, 3, device="meta", dtype=torch.bool)
    try:
        out = resolve_ops("triton").attention(q, q, q, mask=mask)
    except ValueError:
        return False
    (gradient,) = torch.autograd.grad(out.sum(), q)
    return gradient.shape == q.shape


def test_attention_declares_the_dtypes_and_head_dims_that_it_takes():
    (support,) = resolve_ops("triton").attention_support
    floats = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int32)
    assert {dtype for dtype in floats if takes(dtype, 64)} == set(support.dtypes)
    assert [width for width in range(8, 264, 8) if takes(torch.bfloat16, width)] == list(support.head_dims)
    assert support.key_mask
    assert support.backward


@pytest.mark.parametrize(
    ("device", "capability", "reason"),
    [
        ("cpu", None, "does not run on cpu"),
        ("cuda", (7, 5), "needs compute capability 8.0 or newer"),
        *[("cuda", divmod(arch, 10), None) for arch in ARCHITECTURES],
        ("cuda", (8, 6), None),
        ("cuda", (12, 0), None),
    ],
)
def test_attention_runs_where_the_kernels_are_compiled_for(device, capability, reason):
    target = Target(device=torch.device(device), name="this", capability=capability, dtype=torch.bfloat16)
    found = why_not(attention_backend("triton"), target)
    assert found is None if reason is None else reason in found


def test_import_starts_no_gpu():
    code = "import omnihuman_kernels.register, torch; assert not torch.cuda.is_initialized()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_gpu_check_without_a_gpu_says_so_in_one_line():
    script = Path(__file__).parents[2] / "benchmarks/kernels/gpu_check.py"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stdout.splitlines()) == 1
    assert "needs a CUDA device" in done.stdout
