"""What a run asks of a machine, read off its configuration: the model, its samples, and how they are computed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from omnihuman_core.mmdit import MMDiTConfig
from omnihuman_train.config import OptimizerConfig, ParallelConfig, TrainConfig
from omnihuman_train.distributed.activation_checkpoint import CheckpointMode
from omnihuman_train.flops import Flops, SampleTokens, sample_tokens
from omnihuman_train.lora import add_lora
from omnihuman_train.model import OmniModel
from omnihuman_train.partly_trained import partly_trained_flops
from omnihuman_train.saved_tensors import encoder_bytes
from omnihuman_train.stage_config import StageConfig
from omnihuman_train.stages import Stage


@dataclass(frozen=True, kw_only=True)
class StageLoad:
    """Steps of one stage.

    Attributes:
        name: Name of the stage.
        steps: Optimiser steps.
        samples: Samples of a step, over all ranks.
        tokens: Tokens of a sample.
    """

    name: str
    steps: int
    samples: int
    tokens: SampleTokens


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a run asks of a machine.

    Attributes:
        model: The trained module, on ``meta``.
        backbone: Architecture of its backbone.
        stages: What it trains on, in order.
        optimizer: Its optimiser.
        parallel: How ranks share the work.
        accumulate: Parts that a rank computes its samples in.
        activation_checkpoint: What the blocks recompute.
        fused: Whether the ops make one pass each.
        precision: ``bf16`` or ``fp32``.
        pose_bytes: What the pose guider keeps for one sample.
    """

    model: OmniModel
    backbone: MMDiTConfig
    stages: tuple[StageLoad, ...]
    optimizer: OptimizerConfig
    parallel: ParallelConfig
    accumulate: int
    activation_checkpoint: CheckpointMode
    fused: bool
    precision: str
    pose_bytes: int

    @property
    def parts(self) -> dict[str, int]:
        """Parameters of each part of the model."""
        named: dict[str, nn.Module | None] = dict(self.model.named_children())
        return {name: sum(p.numel() for p in part.parameters()) for name, part in named.items() if part is not None}

    @property
    def trained(self) -> int:
        """Parameters that are trained; with low-rank updates, a small share of all."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def flops(self, stage: StageLoad) -> Flops:
        """Operations of a forward of a sample of ``stage``, and what frozen weights spare its backward."""
        return partly_trained_flops(self.model, stage.tokens)

    @property
    def longest(self) -> StageLoad:
        """The stage with the longest samples, which decides what memory is needed."""
        return max(self.stages, key=lambda stage: stage.tokens.total)


def workload(config: StageConfig | TrainConfig) -> Workload:
    """What a run asks of a machine; nothing is allocated.

    Samples are taken to have the area of ``generation.area``, as the buckets of a data set have.

    Raises:
        ValueError: components that cannot be built, or a backbone that is no MMDiT.
    """
    with torch.device("meta"):
        if isinstance(config, StageConfig):
            build = {name: config.model.component(name) for name in ("text_encoder", "audio_encoder", "pose_encoder")}
            backbone = config.model.backbone.build("backbone")
            parts = {name: chosen.build(kind) for name, (kind, chosen) in build.items()}
            probe = nn.Linear(parts["audio_encoder"].config.hidden_dim, 1) if config.flow.mouth_probe_weight else None
            model = OmniModel(backbone, **parts, mouth_probe=probe)
            if config.lora is not None:
                add_lora(model, config.lora)
            stages, mode, fused = config.stages[-1:], config.activation_checkpoint, config.model.ops != "eager"
        else:
            model = OmniModel.from_preset(config.preset, probe=config.flow.mouth_probe_weight > 0)
            stages, mode, fused = config.stages, "none", False
    architecture = model.backbone.config
    if not isinstance(architecture, MMDiTConfig):
        raise ValueError(f"only runs of an mmdit can be planned, the backbone is {type(model.backbone).__name__}")
    loads = tuple(_load(config, stage, model) for stage in stages)
    return Workload(
        model=model,
        backbone=architecture,
        stages=loads,
        optimizer=config.run.optimizer,
        parallel=config.run.parallel,
        accumulate=config.run.accumulate,
        activation_checkpoint=mode,
        fused=fused,
        precision=config.run.precision,
        pose_bytes=_pose_bytes(model, max(loads, key=lambda load: load.tokens.total).tokens),
    )


def _load(config: StageConfig | TrainConfig, stage: Stage, model: OmniModel) -> StageLoad:
    architecture: MMDiTConfig = model.backbone.config
    stride = model.pose_encoder.config.spatial_stride
    patch = architecture.patch_size[1] * architecture.patch_size[2] * stride**2
    frames = architecture.patch_size[0] if stage.pictures else config.segment.latent_frames
    text = model.text_encoder.config
    length: int = text.max_tokens if hasattr(text, "max_tokens") else text.max_words
    tokens = sample_tokens(
        architecture,
        latent_frames=frames,
        # One row of patches: how the frame is cut does not change what it costs.
        height=architecture.patch_size[1],
        width=architecture.patch_size[2] * max(config.generation.area // patch, 1),
        # Half of the segments continue one; the others denoise their first frames too, which costs the same.
        motion_latents=0 if stage.pictures else config.segment.motion_latents,
        text=length,
        audio_per_frame=model.audio_encoder.config.temporal_stride,
        reference=True,
    )
    return StageLoad(
        name=stage.name, steps=stage.steps, samples=stage.batch_size or config.run.batch_size, tokens=tokens
    )


def _pose_bytes(model: OmniModel, tokens: SampleTokens) -> int:
    """Bytes that the guider keeps for a clip in bf16, if the sample keeps its pose."""
    guider, (frames, rows, columns) = model.pose_encoder, model.backbone.config.patch_size
    settings = guider.config
    pixels = 1 + (tokens.frames * frames - 1) * settings.temporal_stride
    height, width = rows * settings.spatial_stride, columns * settings.spatial_stride * tokens.frame
    maps = torch.empty(1, settings.in_channels, pixels, height, width, dtype=torch.bfloat16, device="meta")
    with torch.device("meta"):
        copy = type(guider)(settings).to(torch.bfloat16)
    return encoder_bytes(copy, maps)


def changed(work: Workload, **fields: Any) -> Workload:
    """``work`` with other settings; those of ``parallel`` by their own names."""
    parallel = {name: fields.pop(name) for name in ("dp_shard", "dp_replicate", "sequence") if name in fields}
    return replace(work, parallel=replace(work.parallel, **parallel), **fields)
