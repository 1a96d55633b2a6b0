"""Data and training of the phases: each is made once, resumes, and starts from the weights of the one before it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omni_conditions.variants import Protocol, Variant
from omnihuman_core.checkpoint import load_safetensors, save_safetensors
from omnihuman_core.plugins import plugin
from omnihuman_train.config import FlowConfig, OptimizerConfig, RunConfig, SegmentConfig
from omnihuman_train.data.batches import FlowBatches
from omnihuman_train.data.cached import Sample, Shards, shard_paths, write_shard
from omnihuman_train.model import OmniModel, build
from omnihuman_train.objective import FlowObjective
from omnihuman_train.stages import Ratios, Stage
from omnihuman_train.trainer import fit

SIZE = 64
BUCKET = f"{SIZE}x{SIZE}"
# All that a variant learns is a function of this, of the seed of its variant and of its data.
MODEL_SEED = 0
FIRST = Ratios(text=0.9, audio=0.0, pose=0.0)


def write_data(source: Path, folder: Path, protocol: Protocol, share: float) -> Path:
    """Encoded clips of one share of the text-only pool: ``fit`` clips as they are, then the pool without its flags.

    Args:
        source: Encoded clips of a run of the recipe `tiny`, ``latents/``.
        folder: Where to write; what is there stays.
        protocol: How many clips there are.
        share: Share of the pool, in [0, 1].

    Raises:
        ValueError: the source has too few clips.
    """
    target = folder / f"text{round(100 * share)}" / BUCKET
    name = target / "000000.safetensors"
    if not name.exists():
        shards = Shards(shard_paths(source / BUCKET))
        passed = shards.tensors["has_audio"].nonzero()[:, 0].tolist()
        own = passed[: protocol.fit]
        rest = sorted(set(range(len(shards))) - set(own))[: protocol.pool]
        if len(own) < protocol.fit or len(rest) < protocol.pool:
            raise ValueError(
                f"{source / BUCKET}: {len(shards)} clips, {len(passed)} of them with their own voice; the protocol "
                f"needs {protocol.fit} and {protocol.pool} others"
            )
        extra = rest[: round(share * len(rest))]
        target.mkdir(parents=True, exist_ok=True)
        write_shard(
            name, [_sample(shards, i, passes=True) for i in own] + [_sample(shards, i, passes=False) for i in extra]
        )
    return target.parent


def _sample(shards: Shards, index: int, *, passes: bool) -> Sample:
    row: dict[str, Tensor | str] = {key: value[index] for key, value in shards.tensors.items()}
    row["caption"] = shards.texts["caption"][index]
    # What fails the audio filter fails the stricter one too.
    return row if passes else {**row, "has_audio": torch.tensor(False), "has_pose": torch.tensor(False)}


def new_model(protocol: Protocol) -> OmniModel:
    """The small model at the protocol's width, with the encoders of its preset; the same weights at each call."""
    torch.manual_seed(MODEL_SEED)
    backbone = plugin("backbone", "mmdit")
    config = replace(
        backbone.presets["tiny"](),
        hidden_size=protocol.width,
        num_heads=protocol.width // 64,
        num_double_blocks=protocol.double_blocks,
        num_single_blocks=protocol.single_blocks,
        audio_blocks=tuple(range(protocol.double_blocks + protocol.single_blocks)),
    )
    audio = build("condition_encoder", "audio", "tiny")
    return OmniModel(
        backbone(config),
        build("condition_encoder", "text_bytes", "tiny"),
        audio,
        build("condition_encoder", "pose_guider", "tiny"),
        nn.Linear(audio.config.hidden_dim, 1),
    )


def load_weights(protocol: Protocol, folder: Path) -> OmniModel:
    """The model that a phase has left in ``folder``."""
    model = new_model(protocol)
    model.load_state_dict(load_safetensors(folder / "final.safetensors"))
    return model.eval()


def train_variant(variant: Variant, seed: int, protocol: Protocol, source: Path, out: Path) -> Path:
    """Train what of the variant is not there yet; returns the folder of its last phase."""
    folder = out / "stage1"
    data = write_data(source, out / "data", protocol, 0.0)
    _train_phase(protocol, data, FIRST, protocol.first_steps, folder, seed=MODEL_SEED, start=None, last=False)
    data = write_data(source, out / "data", protocol, variant.share)
    for number, (name, path) in enumerate(variant.chain()):
        before, folder = folder, out / f"seed{seed}" / name
        _train_phase(
            protocol,
            data,
            path[-1],
            protocol.phase_steps,
            folder,
            seed=1000 * (seed + 1) + number,
            start=before,
            last=number == 1,
        )
    return folder


def _train_phase(
    protocol: Protocol,
    data: Path,
    ratios: Ratios,
    steps: int,
    folder: Path,
    *,
    seed: int,
    start: Path | None,
    last: bool,
) -> None:
    final = folder / "final.safetensors"
    if final.exists():
        return
    model = new_model(protocol) if start is None else load_weights(protocol, start)
    optimizer = OptimizerConfig(
        name="muon",
        lr=protocol.learning_rate,
        muon_lr=2 * protocol.learning_rate,
        warmup_steps=min(20, steps),
        decay_fraction=0.4 if last else 0.0,
    )
    run = RunConfig(
        steps=steps, batch_size=protocol.batch_size, seed=seed, ema_decay=0.98, log_every=25, optimizer=optimizer
    )
    batches = flow_batches(data, run, ratios)
    objective = FlowObjective(FlowConfig(mouth_weight=4.0, hand_weight=2.0, mouth_probe_weight=1.0))
    fit(model, objective, batches, run, folder, resolved="", title=folder.name).copy_to(model)
    save_safetensors(dict(model.state_dict()), final, {})


def flow_batches(data: Path, run: RunConfig, ratios: Ratios) -> Any:
    """Whole clips in one segment. The stage goes past `check_stages`, which refuses what is to be tried here."""
    frames = Shards(shard_paths(data / BUCKET), ("latents",)).tensors["latents"].shape[2]
    return FlowBatches(
        data,
        run,
        SegmentConfig(latent_frames=int(frames), motion_latents=0, continuing_ratio=0.0),
        (Stage(name="phase", steps=run.steps, ratios=ratios),),
        text_extractor=build("feature_extractor", "text_bytes", "tiny"),
        pose_extractor=build("feature_extractor", "skeleton", "tiny"),
        spatial_stride=build("video_vae", "causal", "tiny").latent_spec.spatial_stride,
    )
