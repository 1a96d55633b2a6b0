"""Kernels as a GPU would run them: compiled for sm_80, sm_90 and sm_100 at real sizes, held to resource budgets."""

import pytest
import torch

from omnihuman_kernels import (
    _segments,
    frame_cross_attention,
    gated_residual,
    modulated_norm,
    qk_norm_rope,
    rms_norm_silu,
)
from omnihuman_kernels.joint_attention import op as joint_attention
from tests.kernels.compiling import SHARED_LIMIT, compile_for, meta, narrow_products, record, source_of, warnings_of

# 832 x 480 pixels, 5 s: 33 latent frames of 1560 tokens and 256 words. Two segments, then the words.
LENGTH, WIDTH, HEADS = 51736, 3072, 24
SEGMENTS = [1560, 49920, 256]
EPS = 1e-6


def float32(*shape):
    return meta(*shape, dtype=torch.float32)


def run_qk_norm_rope(head_dim=128):
    q, k, _ = meta(1, LENGTH, 3, HEADS, head_dim).unbind(2)
    dy, rstd, table = meta(1, LENGTH, HEADS, head_dim), float32(1, LENGTH, HEADS), float32(LENGTH, head_dim // 2)
    for segments in ([LENGTH], [LENGTH - 256, 256]):
        weights = [meta(head_dim) for _ in segments]
        inputs = (q, k, weights, weights, table, table)
        qk_norm_rope._forward._init_fn(*inputs, segments, EPS)
        qk_norm_rope._backward._init_fn(dy, dy, *inputs, rstd, rstd, segments)


def run_modulation():
    x, stat = meta(1, LENGTH, WIDTH), float32(1, LENGTH)
    a, b, c = meta(1, 3, 6 * WIDTH).chunk(6, dim=-1)[:3]
    gated_residual._forward._init_fn(x, x, a, SEGMENTS)
    gated_residual._backward._init_fn(x, x, a, SEGMENTS)
    modulated_norm._forward._init_fn(x, a, b, SEGMENTS, EPS)
    modulated_norm._backward._init_fn(x, x, a, b, stat, stat, SEGMENTS)
    modulated_norm._residual_forward._init_fn(x, x, a, b, c, SEGMENTS, EPS)
    modulated_norm._residual_backward._init_fn(x, x, x, x, a, b, c, stat, stat, SEGMENTS)


def run_frame_cross_attention(head_dim=128):
    q, k = meta(1, 32, 1560, HEADS, head_dim), meta(1, 32, 32, HEADS, head_dim)
    frame_cross_attention._forward._init_fn(q, k, k, meta(head_dim), EPS)
    frame_cross_attention._backward._init_fn(q, q, k, k, meta(head_dim), EPS)


def run_rms_norm_silu():
    for form in (torch.contiguous_format, torch.channels_last_3d):
        x = torch.empty(1, 256, 5, 480, 832, dtype=torch.bfloat16, device="meta", memory_format=form)
        rms_norm_silu._forward._init_fn(x, meta(256), None, 2, EPS)
        rms_norm_silu._backward._init_fn(x, x, meta(256), 0, EPS)


def run_attention(head_dim=128, *, masked=False, packed=False):
    """Forward and the ways to go backward: at head dim 64 in one pass and in two."""
    q, k, v = (meta(1, LENGTH, HEADS, head_dim) for _ in range(3))
    mask = meta(1, LENGTH, dtype=torch.bool) if masked else None
    starts = meta(5, dtype=torch.int32) if packed else None
    sizes = (mask, starts, starts, LENGTH, LENGTH)
    joint_attention._forward._init_fn(q, k, v, *sizes)
    for deterministic in (False, True) if head_dim == 64 else (False,):
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        joint_attention._backward._init_fn(q, q, float32(1, HEADS, LENGTH), q, k, v, *sizes)
    torch.use_deterministic_algorithms(False)


def compiled(monkeypatch, arch, module, call, *others):
    launches = record(monkeypatch, [module, *others], arch, call)
    assert launches
    return [(label(launched), compile_for(launched, arch)) for launched in launches]


def label(launched):
    """Name of a kernel; attention's backward has two forms."""
    with_dq = launched.options.get("WITH_DQ", True)
    return launched.kernel.__name__ if with_dq else "backward_kernel without dq"


def assert_fits(name, kernel, arch, registers=255):
    assert kernel.spilled == 0, f"{name} spills {kernel.spilled} bytes"
    assert kernel.shared <= SHARED_LIMIT[arch], f"{name} wants {kernel.shared} bytes of shared memory"
    assert kernel.registers <= registers, f"{name} uses {kernel.registers} registers"
    assert not narrow_products(kernel.ttir), f"{name} computes addresses in 32 bits"


def assert_products_overlap(name, kernel):
    """A wait for each product means that ptxas put them in a row; it says so only in its notes."""
    products, waits = kernel.count("HGMMA"), kernel.count(r"WARPGROUP\.DEPBAR")
    assert products, name
    assert waits < products / 2, f"{name} waits {waits} times for {products} products"
    assert not warnings_of(kernel), name


def assert_has_producer(name, kernel):
    """Two consumer groups and a producer. When the compiler gives up on them it says nothing."""
    assert kernel.warps == 12, name
    assert "setmaxnreg" in kernel.ptx, name
    assert kernel.registers <= 168, name


# Registers of a thread, at most. Up to 128, two programs of eight warps or four of four share a multiprocessor; above,
# one of eight.
MEMORY_BOUND = {
    "qk_norm_rope": (qk_norm_rope, run_qk_norm_rope, (), 128),
    "modulation": (modulated_norm, run_modulation, (gated_residual, _segments), 200),
    "frame_cross_attention": (frame_cross_attention, run_frame_cross_attention, (), 250),
    "rms_norm_silu": (rms_norm_silu, run_rms_norm_silu, (), 128),
}


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("name", MEMORY_BOUND)
def test_memory_bound_kernels_move_16_bytes_at_a_time(monkeypatch, name, arch):
    module, call, others, registers = MEMORY_BOUND[name]
    for kernel_name, kernel in compiled(monkeypatch, arch, module, call, *others):
        assert_fits(kernel_name, kernel, arch, registers)
        assert kernel.count(r"(LDG\.E\S*|LDGSTS\.E\S*)\.128"), kernel_name
        if kernel_name != "sum_kernel":
            assert kernel.count(r"STG\.E\S*\.128"), kernel_name


WITH_PRODUCER = {"forward_kernel", "backward_kernel without dq"}


@pytest.mark.parametrize("options", [{}, {"packed": True}, {"masked": True}], ids=str)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_attention_on_hopper(monkeypatch, head_dim, options):
    kernels = dict(compiled(monkeypatch, 90, joint_attention, lambda: run_attention(head_dim, **options)))
    assert {"forward_kernel", "backward_q_kernel", "backward_kernel without dq"} <= set(kernels)
    if head_dim == 64:
        prepare = kernels.pop("prepare_kernel")
        assert_fits("prepare_kernel", prepare, 90, 128)
        assert prepare.count(r"LDG\.E\S*\.128")
        assert prepare.count(r"STG\.E\S*\.128")
        # Sums through a descriptor, not a number at a time.
        assert kernels["backward_kernel"].count("UTMAREDG")
        assert not kernels["backward_kernel"].count(r"\bRED\.")
    for name, kernel in kernels.items():
        assert_fits(name, kernel, 90)
        assert kernel.count("UTMALDG"), name
        assert_products_overlap(name, kernel)
        # The scale of a score and the subtraction before its exponential are one instruction.
        assert kernel.count(r"\bFFMA\b") >= kernel.count(r"MUFU\.EX2"), name
        if name in WITH_PRODUCER:
            assert_has_producer(name, kernel)


@pytest.mark.parametrize("default", ["0", "1", None])
def test_products_and_sums_are_fused_whatever_the_default(monkeypatch, recwarn, default):
    """Triton 3.9 fuses unasked, and warns that 3.10 will not."""
    if default is None:
        monkeypatch.delenv("TRITON_DEFAULT_FP_FUSION", raising=False)
    else:
        monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", default)
    q, sizes = meta(1, LENGTH, HEADS, 64), (None, None, None, LENGTH, LENGTH)
    ((name, kernel),) = compiled(
        monkeypatch, 90, joint_attention, lambda: joint_attention._forward._init_fn(q, q, q, *sizes)
    )
    assert_fits(name, kernel, 90)
    assert kernel.count(r"\bFFMA\b") >= kernel.count(r"MUFU\.EX2") > 0
    assert not [warning for warning in recwarn if "FP_FUSION" in str(warning.message)]


def test_attention_on_blackwell(monkeypatch):
    for name, kernel in compiled(monkeypatch, 100, joint_attention, run_attention):
        assert_fits(name, kernel, 100)
        assert kernel.count("UTCHMMA"), name
        assert kernel.count("UTMALDG"), name


@pytest.mark.parametrize("channels", [96, 256, 512, 1024])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last_3d], ids=str)
def test_the_backward_of_rms_norm_silu_prefetches(monkeypatch, form, channels):
    x = torch.empty(1, channels, 5, 48, 80, dtype=torch.bfloat16, device="meta", memory_format=form)
    call = lambda: rms_norm_silu._backward._init_fn(x, x, meta(channels), 0, EPS)  # noqa: E731
    ((name, kernel),) = compiled(monkeypatch, 90, rms_norm_silu, call)
    assert_fits(name, kernel, 90, 128)
    assert kernel.count(r"LDGSTS\.E\S*\.128")


@pytest.mark.parametrize("head_dim", [64, 128])
def test_attention_elsewhere(monkeypatch, head_dim):
    for name, kernel in compiled(monkeypatch, 80, joint_attention, lambda: run_attention(head_dim)):
        assert_fits(name, kernel, 80)
        # So that it also runs on GPUs with 99 KiB.
        assert kernel.shared <= SHARED_LIMIT[86], name
        assert kernel.count("HMMA"), name


@pytest.mark.parametrize("arch", [86, 120])
def test_everything_fits_gpus_for_desktops(monkeypatch, arch):
    """99 KiB of shared memory a program; nothing spills but the backward of audio attention in float32."""

    def run():
        run_qk_norm_rope()
        run_modulation()
        run_rms_norm_silu()
        run_frame_cross_attention()
        run_attention(128)
        frame_cross_attention._forward._init_fn(q, many, many, meta(128), EPS)
        frame_cross_attention._backward._init_fn(wide, wide, few, few, meta(128), EPS)

    q, many = meta(1, 2, 1560, HEADS, 128), meta(1, 2, frame_cross_attention.MOST_KEYS, HEADS, 128)
    wide, few = float32(1, 2, 1560, HEADS, 128), float32(1, 2, frame_cross_attention.MOST_KEYS_FLOAT32, HEADS, 128)
    seen = {}
    for launched in record(monkeypatch, EVERYTHING, arch, run):
        seen.setdefault(source_of(launched).hash(), launched)
    assert len(seen) > 15
    for launched in seen.values():
        kernel = compile_for(launched, arch)
        assert kernel.shared <= SHARED_LIMIT[arch], label(launched)
        assert kernel.spilled == 0 or launched.args[0] is wide, label(launched)


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_the_backward_of_qk_norm_rope_prefetches(monkeypatch, arch):
    """All that a tile reads of q and k, their gradients and the tables, with one segment and with two."""
    for name, kernel in compiled(monkeypatch, arch, qk_norm_rope, run_qk_norm_rope):
        if name == "backward_kernel":
            # In the loop, and as many before it.
            assert kernel.count(r"LDGSTS\.E\S*\.128") == 2 * 6
            # Four programs of four warps share a multiprocessor, which is what launches count on.
            assert 4 * kernel.shared <= SHARED_LIMIT[arch]


EVERYTHING = [_segments, frame_cross_attention, gated_residual, modulated_norm, qk_norm_rope, rms_norm_silu]
EVERYTHING.append(joint_attention)


def run_everything(length, heads, head_dim, dtype=torch.bfloat16):
    """Every kernel once, for one sample with a sequence of ``length`` tokens, the first a segment of its own."""
    ends = [1, length - 1] if length > 1 else [1]
    x, a = meta(1, length, heads * head_dim, dtype=dtype), meta(1, len(ends), heads * head_dim, dtype=dtype)
    stat = float32(1, length)
    gated_residual._forward._init_fn(x, x, a, ends)
    gated_residual._backward._init_fn(x, x, a, ends)
    modulated_norm._forward._init_fn(x, a, a, ends, EPS)
    modulated_norm._residual_backward._init_fn(x, x, x, x, a, a, a, stat, stat, ends)
    q = x.unflatten(-1, (heads, head_dim))
    weights, table, rstd = [meta(head_dim) for _ in ends], float32(length, head_dim // 2), float32(1, length, heads)
    qk_norm_rope._forward._init_fn(q, q, weights, weights, table, table, ends, EPS)
    qk_norm_rope._backward._init_fn(q, q, q, q, weights, weights, table, table, rstd, rstd, ends)
    frame_cross_attention._forward._init_fn(q[None], q[None, :, :1], q[None, :, :1], weights[0], EPS)
    frame_cross_attention._backward._init_fn(q[None], q[None], q[None, :, :1], q[None, :, :1], weights[0], EPS)
    sizes = (None, None, None, length, length)
    joint_attention._forward._init_fn(q, q, q, *sizes)
    joint_attention._forward._init_fn(q, q, q, meta(1, length, dtype=torch.bool), *sizes[1:])
    joint_attention._backward._init_fn(q, q, float32(1, heads, length), q, q, q, *sizes)


def test_sizes_of_one_compile(monkeypatch):
    """The launcher hands a one to the compiler as a constant, which the interpreter does not; a still of one token."""

    def ones():
        run_everything(1, 1, 16)
        video = meta(1, 1, 1, 1, 1)
        rms_norm_silu._forward._init_fn(video, meta(1), None, 0, EPS)
        rms_norm_silu._backward._init_fn(video, video, meta(1), 0, EPS)

    for launched in record(monkeypatch, EVERYTHING, 90, ones):
        assert_fits(label(launched), compile_for(launched, 90), 90)


def test_one_binary_serves_all_lengths(monkeypatch):
    """Prompts and clips differ in length from call to call, and a compilation takes seconds."""
    first, second, aligned = (
        record(monkeypatch, EVERYTHING, 90, lambda n=length: run_everything(n, 4, 64)) for length in (4099, 4113, 8208)
    )
    assert len(first) == len(second) == len(aligned)
    for a, b, c in zip(first, second, aligned, strict=True):
        assert source_of(a).hash() == source_of(b).hash(), label(a)
        # Where segments end is a tuple, whose multiples of 16 the launcher always notes.
        if not any(isinstance(x, tuple) for x in a.args):
            assert source_of(a).hash() == source_of(c).hash(), label(a)


@pytest.mark.parametrize("arch", [80, 90])
def test_float32_and_many_audio_tokens_fit(monkeypatch, arch):
    def run():
        for dtype, keys in (
            (torch.float32, frame_cross_attention.MOST_KEYS_FLOAT32),
            (torch.bfloat16, frame_cross_attention.MOST_KEYS),
        ):
            q, k = meta(1, 2, 1560, HEADS, 128, dtype=dtype), meta(1, 2, keys, HEADS, 128, dtype=dtype)
            frame_cross_attention._forward._init_fn(q, k, k, meta(128), EPS)
            frame_cross_attention._backward._init_fn(q, q, k, k, meta(128), EPS)
        q = meta(1, LENGTH, HEADS, 128, dtype=torch.float32)
        joint_attention._forward._init_fn(q, q, q, None, None, None, LENGTH, LENGTH)
        joint_attention._backward._init_fn(q, q, float32(1, HEADS, LENGTH), q, q, q, None, None, None, LENGTH, LENGTH)

    for launched in record(monkeypatch, [frame_cross_attention, joint_attention], arch, run):
        kernel = compile_for(launched, arch)
        assert kernel.shared <= SHARED_LIMIT[arch]
        # Backward spills at these sizes, in float32 by an amount that depends on the compiler.
        if launched.kernel.__name__ == "forward_kernel":
            assert kernel.spilled == 0, label(launched)


@pytest.mark.parametrize("change", ["strides", "base", "broadcast"])
def test_operands_whose_rows_are_not_in_whole_16_bytes_are_copied(monkeypatch, change):
    """Descriptors cannot address them, and without descriptors the kernels of an A100 would spill."""
    whole = torch.zeros(1, 5, 2, 72, dtype=torch.bfloat16)
    good = whole[..., :64]
    bad = {
        "strides": torch.zeros(1, 5, 2, 65, dtype=torch.bfloat16)[..., :64],
        "base": whole[..., 1:65],
        "broadcast": good[:, :1].expand(1, 5, 2, 64),
    }[change]
    call = (None, None, None, 5, 5)
    for arch, descriptors in ((90, True), (80, False)):
        run = lambda: joint_attention._forward._init_fn(bad, good, good, *call)  # noqa: E731
        (launched,) = record(monkeypatch, [joint_attention], arch, run)
        assert launched.options["TMA"] == descriptors
        assert launched.args[0] is not bad
        assert launched.args[0].is_contiguous()
        assert launched.args[1] is good
