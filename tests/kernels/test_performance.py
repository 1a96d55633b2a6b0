"""The performance model against torch's own counter, published sizes, and the blocks as they are."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from omnihuman_core.mmdit import blocks as blocks_module
from omnihuman_core.mmdit import hunyuan_video
from omnihuman_core.mmdit.blocks import BlockInputs, DoubleStreamBlock, SingleStreamBlock
from omnihuman_kernels import performance
from omnihuman_kernels.counting import KernelCounter
from omnihuman_kernels.joint_attention import joint_attention
from omnihuman_kernels.register import triton_ops
from tests.core.mmdit.builders import build, config, inputs
from tests.kernels.compiling import meta

DOUBLE_LIMIT, SINGLE_LIMIT = 14, 10


def counted(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize(("queries", "keys", "head_dim"), [(64, 96, 64), (33, 128, 128)])
def test_attention_flops_are_torchs(queries, keys, head_dim):
    q = meta(2, 3, queries, head_dim).requires_grad_()
    k = meta(2, 3, keys, head_dim).requires_grad_()
    forward = performance.attention(2, queries, keys, 3, head_dim)
    with FlopCounterMode(display=False) as counter:
        out = torch.einsum("bnlk,bnmk->bnlm", q, k).softmax(-1) @ k
        assert forward.flops == pytest.approx(counter.get_total_flops(), rel=0.01)
        out.sum().backward()
    # Autograd keeps the weights; a flash backward forms the scores again, one product more.
    backward = performance.attention(2, queries, keys, 3, head_dim, backward=True).flops
    assert backward * 4 / 5 == pytest.approx(counter.get_total_flops() - forward.flops, rel=0.01)


def test_torchs_counter_sees_our_attention():
    q, k = meta(2, 64, 3, 64).requires_grad_(), meta(2, 96, 3, 64).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        out = joint_attention(q, k, k)
        forward = counter.get_total_flops()
        out.sum().backward()
    assert forward == performance.attention(2, 64, 96, 3, 64).flops
    assert counter.get_total_flops() - forward == performance.attention(2, 64, 96, 3, 64, backward=True).flops


def blocks(tokens=512, words=64, *, batch=1, audio=None):
    """A double and a single block of HunyuanVideo's sizes, on meta tensors, as calls."""
    config = hunyuan_video()
    with torch.device("meta"):
        double = DoubleStreamBlock(config, triton_ops(), audio_dim=audio).bfloat16().eval()
        single = SingleStreamBlock(config, triton_ops(), audio_dim=audio).bfloat16().eval()
    width = config.hidden_size * (6 if config.modulation == "shared" else 1)
    table = meta(tokens + words, config.head_dim // 2, dtype=torch.float32)
    inputs = BlockInputs(
        condition=meta(batch, 2, width),
        segments=(tokens // 4, tokens - tokens // 4),
        cos=table,
        sin=table,
        mask=None,
        audio=None if audio is None else meta(batch, 4, 8, audio),
        # A reference in front, which hears nothing.
        first_audible=tokens // 4,
    )
    video, text = meta(batch, tokens, config.hidden_size), meta(batch, words, config.hidden_size)
    joint = meta(batch, tokens + words, config.hidden_size)
    return lambda: double(video, text, inputs), lambda: single(joint, inputs, words)


def test_model_flops_are_torchs():
    config = hunyuan_video()
    for call, shape in zip(
        blocks(), ({"double_blocks": 1, "single_blocks": 0}, {"double_blocks": 0, "single_blocks": 1}), strict=True
    ):
        expected = performance.forward_flops(
            performance.ModelShape(width=config.hidden_size, video_tokens=512, other_tokens=64, **shape)
        )
        assert counted(call) == pytest.approx(expected.total, rel=0.01)


@pytest.mark.parametrize(
    ("tokens", "linear", "attention", "audio", "seconds"),
    [
        (8704, 0.12, 0.06, 0.02, 0.24),
        (34048, 0.46, 0.85, 0.08, 1.74),
        (51736, 0.70, 1.97, 0.12, 3.49),
        (119056, 1.62, 10.45, 0.27, 15.4),
    ],
)
def test_a_13b_model_at_known_sizes(tokens, linear, attention, audio, seconds):
    """20 double and 40 single blocks of width 3072: petaflops and seconds at 800 Tflop/s, worked out by hand."""
    frames = 32
    reference = (tokens - 256) // (frames + 1)
    shape = performance.ModelShape(
        double_blocks=20,
        single_blocks=40,
        width=3072,
        video_tokens=tokens - 256 - reference,
        other_tokens=256 + reference,
        audio_tokens=32,
    )
    flops = performance.forward_flops(shape)
    assert flops.linear / 1e15 == pytest.approx(linear, abs=0.0051)
    assert flops.attention / 1e15 == pytest.approx(attention, abs=0.0051)
    assert flops.audio / 1e15 == pytest.approx(audio, abs=0.008)
    assert performance.roofline(shape, performance.H100_SXM) == pytest.approx(seconds, rel=0.02)


def test_the_smallest_times_of_memory_bound_ops():
    """q and k of 24 heads of 128 take 24.6 kB a token, and 512 bytes of tables."""
    cost = performance.qk_norm_rope(1, 51736, 24, 128)
    assert cost.bytes == 51736 * (4 * 6144 + 512)
    assert cost.floor(performance.H100_SXM) * 1e3 == pytest.approx(0.433, rel=0.01)
    assert performance.residual_modulated_norm(1, 1000, 3072).bytes == 1000 * 4 * 6144
    assert performance.gated_residual(1, 1000, 3072).bytes == 1000 * 3 * 6144


def test_floor_is_the_slower_of_the_two_limits():
    device = performance.Device(name="x", matrix_flops=10.0, copy_bytes=2.0)
    assert performance.Cost(flops=100, bytes=2).floor(device) == 10
    assert performance.Cost(flops=10, bytes=8).floor(device) == 4


def test_counter_counts_kernels_not_views():
    with KernelCounter() as counter:
        x = meta(4, 8)
        F.gelu(x.view(8, 4).transpose(0, 1) + 1) @ meta(8, 3)
    assert sorted(counter.elementwise) == ["aten::add", "aten::gelu"]
    assert counter.products.total() == 1


def count(call):
    with KernelCounter() as counter, torch.no_grad():
        call()
    return counter.elementwise


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("audio", [None, 768], ids=["silent", "audio"])
def test_a_block_launches_few_kernels(audio, batch):
    for call, limit in zip(blocks(batch=batch, audio=audio), (DOUBLE_LIMIT, SINGLE_LIMIT), strict=True):
        if audio is not None:
            # The first step of a clip also makes its keys and values.
            assert count(call).total() > limit
        kernels = count(call)
        assert kernels.total() <= limit, dict(kernels)
        assert kernels["omnihuman::frame_cross_attention"] == (audio is not None)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_one_copy_for_all_streams_changes_no_bit(monkeypatch, batch):
    model, given = build(config()), inputs(batch=batch)
    with torch.no_grad():
        together = model(*given)
        monkeypatch.setattr(blocks_module, "_apart", lambda x, lengths: x.split_with_sizes(lengths, dim=1))
        assert torch.equal(together, model(*given))
