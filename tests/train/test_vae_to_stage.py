"""From a VAE that was just trained to a stage that trains on its latents, by the commands of the documentation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from omnihuman_core.checkpoint import load_safetensors
from omnihuman_core.model_dir import load_component, read_index
from omnihuman_train.cli import main
from omnihuman_train.recipes import stage1
from omnihuman_train.stage_run import run_stage

from .stage_toys import FRAMES, SIDE, toy


def test_a_stage_trains_on_the_latents_of_a_vae_that_was_trained_before(tmp_path: Path) -> None:
    run, clips, states = tmp_path / "vae", tmp_path / "clips", tmp_path / "states"
    train = ["run", "--config", "omnihuman_train.recipes.vae:small", "--out", str(run), "--trial", "2"]
    with pytest.warns(UserWarning, match="no perceptual term"):
        assert main([*train, "--set", "clips.clips=[2, 1]"]) == 0
    assert list(read_index(run / "model").components) == ["vae"]
    vae = load_component(run / "model", "vae")
    for name, value in load_safetensors(run / "vae" / "final.safetensors").items():
        assert torch.equal(vae.state_dict()[name], value.bfloat16().float()), name

    size = f"{SIDE}x{SIDE}"
    assert (
        main(["data", "pack", "--characters", "4", "--frames", str(FRAMES), "--sizes", size, "--out", str(clips)]) == 0
    )
    parts = ["--vae", str(run / "model"), "--audio", "log_mel:tiny", "--text", "text_bytes:tiny"]
    assert main(["data", "cache", str(clips), "--out", str(states), *parts]) == 0

    config = toy(stage1.small(), states, None, vae=str(run / "model"))
    run_stage(replace(config, watch=replace(config.watch, validation_every=3)), tmp_path / "stage1")
    assert (tmp_path / "stage1" / "validation" / "step_00000003_seed_0.mp4").is_file()
    mine, theirs = (
        load_safetensors(folder / "model" / "vae" / "model.safetensors") for folder in (tmp_path / "stage1", run)
    )
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], value) for name, value in theirs.items())
