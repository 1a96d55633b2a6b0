"""A toy data set and the recipes on real data cut down to it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from omnihuman_train.config import OptimizerConfig, RunConfig, SegmentConfig
from omnihuman_train.data.encoder import describe
from omnihuman_train.data.manifest import MANIFEST, SampleRecord, write_manifest
from omnihuman_train.data.plan import BatchConfig
from omnihuman_train.data.shards import STATES, Index, write_index, write_tar
from omnihuman_train.data.stream import StreamConfig
from omnihuman_train.model import build
from omnihuman_train.stage_config import ComponentConfig, ModelConfig, StageConfig
from omnihuman_train.watch import WatchConfig

TINY = Path(__file__).parents[2] / "packages/omnihuman-infer/src/omnihuman_infer/pretrained/tiny"
FRAMES, SIDE = 13, 32
EXTRACTORS = {
    "audio": ("log_mel:tiny", build("feature_extractor", "log_mel", "tiny")),
    "text": ("text_bytes:tiny", build("feature_extractor", "text_bytes", "tiny")),
}
NARROW = {"hidden_size": 64, "num_heads": 2, "num_double_blocks": 1, "num_single_blocks": 1, "rope_dims": [8, 12, 12]}


def write_encoded(folder: Path, *, side: int = SIDE, first: int = 0) -> Path:
    """Eight samples of noise in the shapes of the small model's extractors, numbered from ``first`` on."""
    folder.mkdir(parents=True)
    size = side // 8
    members, records = [], []
    for number in range(first, first + 8):
        generator = torch.Generator().manual_seed(number)
        key = hashlib.sha1(str(number).encode()).hexdigest()
        tensors = {
            "latents.safetensors": {
                "latents": torch.randn(16, 4, size, size, generator=generator).bfloat16(),
                "reference": torch.randn(16, 1, size, size, generator=generator).bfloat16(),
                "mouth_region": torch.zeros(4, size, size, dtype=torch.bool),
                "hand_region": torch.zeros(4, size, size, dtype=torch.bool),
            },
            "audio.safetensors": {"states": torch.randn(FRAMES, 1, 160, generator=generator).half()},
            "pose.safetensors": {
                "keypoints": torch.rand(FRAMES, 133, 3, generator=generator).half(),
                "mouth_open": torch.zeros(FRAMES),
            },
            "text.safetensors": {
                "values": torch.randint(1, 200, (3, 12), generator=generator),
                "mask": torch.ones(3, dtype=torch.bool),
            },
        }
        members.append((key, {name: save(value) for name, value in tensors.items()} | {"json": b"{}"}))
        records.append(
            SampleRecord(
                key=key,
                source=f"noise/{number}",
                start=0.0,
                frames=FRAMES,
                height=side,
                width=side,
                fps=25.0,
                has_text=True,
                has_audio=True,
                has_pose=number % 2 == 0,
                has_mouth=False,
                licence="own",
            )
        )
    shards = [write_tar(folder / f"shard-{n:06d}.tar", members[4 * n : 4 * n + 4]) for n in range(2)]
    write_manifest(folder / MANIFEST, records)
    recipe = {
        "latent_spec": {"channels": 16, "temporal_stride": 4, "spatial_stride": 8},
        "text_length": 24,
        "audio": "log_mel:tiny",
        "text": "text_bytes:tiny",
        "extractors": {name: describe(f"{name}_extractor", *made) for name, made in EXTRACTORS.items()},
    }
    write_index(folder, Index(kind=STATES, recipe=recipe, broken={}, shards=tuple(shards)))
    return folder


def toy(recipe: StageConfig, data: Path, start: Path | None, **changes: Any) -> StageConfig:
    """A recipe with three steps on a CPU, and a narrow model."""
    stages = tuple(replace(stage, steps=3) for stage in recipe.stages)
    preset = {name: ComponentConfig(plugin=plugin, preset="tiny") for name, plugin in _PLUGINS.items()}
    audio = {"audio_blocks": [0, 1]}
    values: dict[str, Any] = {
        "start": None if start is None else str(start),
        "model": ModelConfig(
            backbone=ComponentConfig(plugin="mmdit", preset="tiny", changes={**NARROW, **audio}), **preset
        ),
        "vae": str(TINY),
        "data": str(data),
        "stream": StreamConfig(batch=BatchConfig(batch_size=4)),
        "stages": stages,
        "segment": SegmentConfig(latent_frames=3),
        "run": RunConfig(
            steps=3, batch_size=4, log_every=1, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=1), precision="fp32"
        ),
        "activation_checkpoint": "selective",
        "watch": WatchConfig(every=2, validation_every=3, validation_seeds=(0,), validation_steps=2, gpu=False),
    }
    return replace(recipe, **{**values, **changes})


_PLUGINS = {
    "text_encoder": "text_bytes",
    "audio_encoder": "audio",
    "pose_encoder": "pose_guider",
    "pose_extractor": "skeleton",
}
