"""The benchmark's modules, and a run with a few encoded clips and a VAE that has learnt nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from omnihuman_core.checkpoint import save_safetensors
from omnihuman_train.config import ClipsConfig
from omnihuman_train.data.characters import FRAME_RATE
from omnihuman_train.data.clips import render_clips
from omnihuman_train.data.latents import encode_clips
from omnihuman_train.model import build

CLIPS = 12


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("omni") / "run"
    clips = ClipsConfig(
        sizes=((64, 64),), clips=(CLIPS,), framings=(("face", "half"),), num_frames=49, shard_size=8, seed=5
    )
    render_clips(clips, folder / "clips", progress=lambda count: None)
    torch.manual_seed(0)
    vae, audio = build("video_vae", "causal", "tiny").eval(), build("feature_extractor", "log_mel", "tiny")
    (folder / "vae").mkdir()
    save_safetensors(dict(vae.state_dict()), folder / "vae" / "final.safetensors", {})
    target = folder / "latents" / "64x64"
    encode_clips(folder / "clips" / "64x64", target, vae, audio, fps=FRAME_RATE, progress=lambda count: None)
    return folder
