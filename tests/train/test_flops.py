"""Closed formulas against torch's own counter, and against the floor that the kernels are measured by."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from omnihuman_core.contracts import (
    AudioCondition,
    Conditioning,
    MotionCondition,
    PoseCondition,
    ReferenceCondition,
    TextCondition,
)
from omnihuman_core.mmdit import MMDiT, MMDiTConfig, presets
from omnihuman_kernels import performance
from omnihuman_train.flops import (
    executed_flops,
    forward_flops,
    mfu,
    sample_tokens,
    step_over_forward,
    training_flops,
)
from omnihuman_train.lora import LoraSettings, add_lora
from omnihuman_train.model import OmniModel
from omnihuman_train.partly_trained import partly_trained_flops

NARROW = replace(
    presets.tiny(), hidden_size=128, num_heads=2, num_double_blocks=1, num_single_blocks=2, audio_blocks=(0, 1, 2)
)
HUNYUAN = replace(
    presets.hunyuan_video(audio_dim=64, pose_channels=4),
    hidden_size=128,
    num_heads=1,
    num_double_blocks=1,
    num_single_blocks=1,
    audio_blocks=(0, 1),
    text_dim=96,
    pooled_dim=32,
)
# 1,280 video tokens: more than the explicit attention of a CPU takes.
SHAPE = {"latent_frames": 6, "height": 32, "width": 32, "motion_latents": 1, "text": 24, "audio_per_frame": 4}


def _sdpa(query: Any, key: Any, value: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _sdpa_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


# Torch's counter knows the kernels of GPUs; the one of CPUs has the same arguments.
_sdpa._get_raw = _sdpa_backward._get_raw = True  # type: ignore[attr-defined]
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _sdpa,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _sdpa_backward,
}


def counted(model: MMDiT, *, text_trained: bool = True) -> tuple[float, float]:
    """Operations of a forward and of its backward, as torch counts them."""
    config, tensor = model.config, torch.randn
    conditioning = Conditioning(
        text=TextCondition(
            tokens=tensor(1, 24, config.text_dim or 0).requires_grad_(text_trained),
            mask=torch.ones(1, 24, dtype=torch.bool),
            pooled=tensor(1, config.pooled_dim or 0),
        ),
        audio=AudioCondition(tokens=tensor(1, 6, 4, config.audio_dim or 0).requires_grad_()),
        pose=PoseCondition(features=tensor(1, config.pose_channels or 0, 6, 32, 32).requires_grad_()),
        reference=ReferenceCondition(latents=tensor(1, 16, 1, 32, 32)),
        motion=MotionCondition(latents=tensor(1, 16, 1, 32, 32)),
    )
    latents, sigma = tensor(1, 16, 5, 32, 32), torch.tensor([0.5])
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as forward:
        loss = model(latents, sigma, conditioning).square().mean()
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as backward:
        loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("config", [NARROW, HUNYUAN], ids=["shared modulation", "hunyuan_video"])
def test_torch_counts_the_same_within_a_percent(config: MMDiTConfig) -> None:
    flops = forward_flops(config, sample_tokens(config, **SHAPE))
    forward, backward = counted(MMDiT(config))
    assert flops.total == pytest.approx(forward, rel=5e-3)
    assert training_flops(flops) == pytest.approx(forward + backward, rel=1e-2)


@pytest.mark.parametrize("full", [LoraSettings().full, LoraSettings().full + r"|text_encoder\..*|.*\.video\.mlp.*"])
@pytest.mark.parametrize("config", [NARROW, HUNYUAN], ids=["shared modulation", "hunyuan_video"])
def test_frozen_weights_are_spared_what_torch_spares_them(config: MMDiTConfig, full: str) -> None:
    torch.manual_seed(0)
    encoders = {f"{name}_encoder": nn.Linear(3, 3) for name in ("text", "audio", "pose")}
    model = OmniModel(MMDiT(config), **encoders)
    add_lora(model, LoraSettings(rank=8, full=full))
    counts = counted(model.backbone, text_trained="text_encoder" in full)
    with torch.device("meta"):
        meta = OmniModel(MMDiT(config), **{name: nn.Linear(3, 3) for name in encoders})
        add_lora(meta, LoraSettings(rank=8, full=full))
    tokens = sample_tokens(config, **SHAPE)
    flops, plain = partly_trained_flops(meta, tokens), forward_flops(config, tokens)
    assert flops.total == pytest.approx(counts[0], rel=5e-3)
    assert training_flops(flops) == pytest.approx(sum(counts), rel=1e-2)
    # Attention is most of it, and nobody is spared that: the difference is the sharper test.
    spared = sum(counted(MMDiT(config))) - sum(counts)
    assert training_flops(plain) - training_flops(flops) == pytest.approx(spared, rel=0.05)
    whole = OmniModel(MMDiT(config), **{name: nn.Linear(3, 3) for name in encoders})
    assert partly_trained_flops(whole, tokens) == plain


def test_the_floor_of_the_kernels_is_the_same() -> None:
    config = presets.hunyuan_video(audio_dim=768)
    # 832 x 480 pixels, 125 frames and a reference picture.
    tokens = sample_tokens(
        config, latent_frames=32, height=60, width=104, motion_latents=0, text=256, audio_per_frame=4
    )
    assert (tokens.total, tokens.visual - tokens.frame, tokens.frame) == (51736, 49920, 1560)
    shape = performance.ModelShape(
        double_blocks=20, single_blocks=40, width=3072, video_tokens=49920, other_tokens=1816, audio_tokens=4
    )
    flops, floor = forward_flops(config, tokens), performance.forward_flops(shape)
    assert flops.attention == floor.attention
    assert flops.linear == pytest.approx(floor.linear, rel=1e-3)
    assert flops.audio_linear + flops.audio_attention == pytest.approx(floor.audio, rel=1e-2)
    assert flops.total == pytest.approx(floor.total, rel=5e-3)


def test_checkpointing_runs_again_what_it_does_not_keep() -> None:
    config = presets.hunyuan_video()
    flops = forward_flops(
        config,
        sample_tokens(config, latent_frames=32, height=60, width=104, motion_latents=0, text=256, audio_per_frame=0),
    )
    assert executed_flops(flops, "none") == training_flops(flops)
    assert executed_flops(flops, "full") - executed_flops(flops, "selective") == flops.attention
    # At this length attention is 70 % of a forward; the ratios are its weighted mean of 3 and 3.5, and one more.
    ratios = [step_over_forward(flops, mode) for mode in ("none", "selective", "full")]
    share = flops.attention / flops.total
    assert ratios == pytest.approx([3 + share / 2, 4 - share / 2, 4 + share / 2], rel=2e-3)


def test_mfu_does_not_count_what_runs_again() -> None:
    assert mfu(3.0e15, 10.0, 1e15) == 0.3


def test_sizes_must_be_whole_patches() -> None:
    with pytest.raises(ValueError, match="height of the latents must be a multiple of the patch, 2, got 31"):
        sample_tokens(presets.tiny(), **{**SHAPE, "height": 31})
