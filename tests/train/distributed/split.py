"""A model split over processes beside a whole one."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from omnihuman_core.contracts import (
    AudioCondition,
    Conditioning,
    MotionCondition,
    PoseCondition,
    ReferenceCondition,
    TextCondition,
)
from omnihuman_core.mmdit import MMDiT
from omnihuman_train.distributed.activation_checkpoint import checkpoint_blocks
from omnihuman_train.distributed.sequence_parallel import parallelize_sequence

CASES: dict[str, tuple[int, int, bool, Any]] = {
    "double and single blocks": (2, 2, True, "none"),
    "recomputed": (1, 1, True, "full"),
    "text alone": (1, 1, False, "selective"),
    "double blocks alone": (2, 0, True, "none"),
    "single blocks alone": (0, 2, True, "none"),
}


def model(doubles: int, singles: int) -> MMDiT:
    torch.manual_seed(0)
    config = replace(
        MMDiT.presets["tiny"](),
        hidden_size=32,
        num_heads=4,
        rope_dims=(2, 2, 4),
        num_double_blocks=doubles,
        num_single_blocks=singles,
        audio_blocks=tuple(range(doubles + singles)),
        text_dim=8,
        text_refiner_depth=1,
        pooled_dim=8,
        audio_dim=8,
        pose_channels=4,
    )
    built = MMDiT(config)
    # Some weights start at zero, and would hide what they multiply.
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.1)
    return built


def inputs(*, whole: bool) -> tuple[Tensor, Tensor, Conditioning]:
    torch.manual_seed(1)
    latents, sigma = torch.randn(2, 16, 3, 4, 4), torch.tensor([0.3, 0.8])
    text = TextCondition(
        tokens=torch.randn(2, 5, 8),
        mask=torch.tensor([[True, True, True, False, False], [True] * 5]),
        pooled=torch.randn(2, 8),
    )
    if not whole:
        return latents, sigma, Conditioning(text=text)
    return (
        latents,
        sigma,
        Conditioning(
            text=text,
            audio=AudioCondition(tokens=torch.randn(2, 5, 3, 8)),
            pose=PoseCondition(features=torch.randn(2, 4, 5, 4, 4)),
            # Another size than the video's.
            reference=ReferenceCondition(latents=torch.randn(2, 16, 1, 4, 8)),
            motion=MotionCondition(latents=torch.randn(2, 16, 2, 4, 4)),
        ),
    )


def compare_split(out: str) -> None:
    """Largest errors of each case, of outputs and gradients, as JSON in ``out`` and the number of the process."""
    torch.set_num_threads(1)
    size = dist.get_world_size()
    worst: dict[str, float] = {}
    for name, (doubles, singles, whole, mode) in CASES.items():
        one = model(doubles, singles)
        split = copy.deepcopy(one)
        checkpoint_blocks(split, mode)
        assert dist.group.WORLD is not None
        parallelize_sequence(split, dist.group.WORLD)
        # Twice: a second pass of another length must not see the layout of the first.
        for arguments in (inputs(whole=not whole), inputs(whole=whole)):
            one.zero_grad()
            split.zero_grad()
            expected, seen = one(*arguments), split(*arguments)
            expected.square().mean().backward()
            seen.square().mean().backward()
            worst[name] = max(worst.get(name, 0.0), float((seen - expected).detach().abs().max()))
            for (key, parameter), other in zip(one.named_parameters(), split.parameters(), strict=True):
                if parameter.grad is None:
                    continue
                assert other.grad is not None, key
                dist.all_reduce(other.grad)
                error = (other.grad / size - parameter.grad).norm() / parameter.grad.norm().clamp_min(1e-6)
                worst[name] = max(worst[name], float(error))
    Path(f"{out}.{dist.get_rank()}").write_text(json.dumps(worst))
