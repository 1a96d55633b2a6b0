"""Toy components and samples: fakes of the core's testing package, a narrow MMDiT, and shards of made-up latents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omnihuman_core.contracts import Conditioning
from omnihuman_core.mmdit import MMDiT, presets
from omnihuman_core.testing.fake_encoders import (
    FakeAudioEncoder,
    FakeAudioEncoderConfig,
    FakePoseEncoder,
    FakePoseEncoderConfig,
    FakePoseExtractor,
    FakePoseExtractorConfig,
    FakeTextEncoder,
    FakeTextEncoderConfig,
    FakeTextExtractor,
    FakeTextExtractorConfig,
)
from omnihuman_core.testing.fakes import FakeBackbone, FakeBackboneConfig
from omnihuman_train.config import RunConfig, SegmentConfig
from omnihuman_train.data.batches import FlowBatches
from omnihuman_train.data.cached import write_shard
from omnihuman_train.model import OmniModel
from omnihuman_train.stages import Ratios, Stage

# Of the fakes: 24 channels, two pixel frames and two pixels behind a latent position.
CHANNELS, LATENT_FRAMES, SIDE = 24, 6, 4
FRAMES = 1 + (LATENT_FRAMES - 1) * 2
STAGES = (
    Stage(name="text", steps=4, ratios=Ratios(text=0.9, audio=0.0, pose=0.0)),
    Stage(name="all", steps=400, ratios=Ratios(text=0.9, audio=0.5, pose=0.25)),
)
SEGMENT = SegmentConfig(latent_frames=4, motion_latents=2, continuing_ratio=0.5)


class HearingEncoder(FakeAudioEncoder):
    """With the states of each frame that a probe reads."""

    def frame_states(self, aligned: Tensor) -> Tensor:
        return self.projection(aligned.flatten(2))  # (B, T, D)


class Recorder(nn.Module):
    """A backbone that notes what it is given and answers ``answer(latents, sigma)``."""

    spec = FakeBackbone(FakeBackboneConfig()).spec

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        self.latents, self.sigma, self.conditioning = latents, sigma, conditioning
        answer: Tensor = self.answer(latents, sigma)
        return answer


def encoders() -> tuple[FakeTextEncoder, HearingEncoder, FakePoseEncoder]:
    torch.manual_seed(1)
    return (
        FakeTextEncoder(FakeTextEncoderConfig()),
        HearingEncoder(FakeAudioEncoderConfig()),
        FakePoseEncoder(FakePoseEncoderConfig()),
    )


def toy_model(backbone: nn.Module | None = None, *, probe: bool = False) -> OmniModel:
    backbone = FakeBackbone(FakeBackboneConfig()) if backbone is None else backbone
    return OmniModel(backbone, *encoders(), nn.Linear(8, 1) if probe else None)


def narrow_mmdit() -> MMDiT:
    """About 0.2 M weights."""
    torch.manual_seed(2)
    return MMDiT(
        replace(
            presets.tiny(),
            latent_channels=CHANNELS,
            hidden_size=64,
            num_heads=2,
            num_double_blocks=1,
            num_single_blocks=1,
            rope_dims=(8, 12, 12),
            text_dim=8,
            pooled_dim=None,
            audio_dim=8,
            audio_blocks=(0, 1),
            pose_channels=4,
        )
    )


def sample(index: int, *, has_audio: bool, has_pose: bool) -> dict[str, Tensor | str]:
    """An encoded clip whose every entry tells which clip it is: the picture is its reference, standing still."""
    generator = torch.Generator().manual_seed(index)
    reference = torch.randn(CHANNELS, 1, SIDE, SIDE, generator=generator)
    keypoints = torch.zeros(FRAMES, 133, 3)
    keypoints[:, 0] = torch.tensor([(index % 8 + 0.5) / 8, (index // 8 + 0.5) / 8, 1.0])
    drift = 0.1 * torch.arange(LATENT_FRAMES).view(1, -1, 1, 1)
    return {
        "latents": (reference + drift).bfloat16(),
        "reference": reference.bfloat16(),
        "audio": (index + torch.arange(FRAMES) / 16).view(-1, 1, 1).expand(-1, 1, 2).half() / 8,
        "mouth_region": torch.rand(LATENT_FRAMES, SIDE, SIDE, generator=generator) < 0.3,
        "hand_region": torch.rand(LATENT_FRAMES, SIDE, SIDE, generator=generator) < 0.2,
        "keypoints": keypoints.half(),
        "mouth_open": torch.full((FRAMES,), index / 10),
        "has_audio": torch.tensor(has_audio),
        "has_pose": torch.tensor(has_pose),
        "caption": chr(ord("a") + index),
    }


def write_latents(folder: Path, count: int = 8) -> Path:
    """Encoded clips in one bucket: every other one with an own voice, every third with hands to trust."""
    bucket = folder / "8x8"
    bucket.mkdir(parents=True)
    for start in range(0, count, 4):
        rows = [sample(i, has_audio=i % 2 == 0, has_pose=i % 3 == 0) for i in range(start, min(start + 4, count))]
        write_shard(bucket / f"{start:06d}-{start + len(rows):06d}.safetensors", rows)
    return folder


def flow_batches(
    folder: Path,
    *,
    batch_size: int = 8,
    segment: SegmentConfig = SEGMENT,
    stages: tuple[Stage, ...] = STAGES,
    prompts: float = 0.0,
) -> FlowBatches:
    return FlowBatches(
        folder,
        RunConfig(steps=sum(stage.steps for stage in stages), batch_size=batch_size),
        segment,
        stages,
        text_extractor=FakeTextExtractor(FakeTextExtractorConfig(max_tokens=4)),
        pose_extractor=FakePoseExtractor(FakePoseExtractorConfig()),
        spatial_stride=2,
        prompts=prompts,
    )
