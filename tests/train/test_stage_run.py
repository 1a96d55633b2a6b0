"""Stages on an encoded data set: one after the other, each from the result of the one before."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from omnihuman_core.checkpoint import load_safetensors
from omnihuman_core.model_dir import load_component, load_model, read_index
from omnihuman_train.cli import main
from omnihuman_train.config import OptimizerConfig, SegmentConfig
from omnihuman_train.distributed.mesh import World
from omnihuman_train.lora import LoraSettings
from omnihuman_train.recipes import stage1, stage2, stage3
from omnihuman_train.stage_run import run_stage, streams
from omnihuman_train.stages import Stage

from .stage_toys import EXTRACTORS, toy, write_encoded


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoded(tmp_path_factory.mktemp("data") / "encoded")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, encoded: Path) -> Path:
    out = tmp_path_factory.mktemp("runs") / "stage1"
    run_stage(toy(stage1.small(), encoded, None), out)
    return out


def test_a_stage_leaves_a_model_rows_and_videos(first: Path) -> None:
    model = load_model(first / "model")
    assert sorted(read_index(first / "model").components) == [
        "audio_encoder",
        "audio_extractor",
        "backbone",
        "pose_encoder",
        "pose_extractor",
        "text_encoder",
        "text_extractor",
        "vae",
    ]
    for name, (_, made) in EXTRACTORS.items():
        assert load_component(first / "model", f"{name}_extractor").config == made.config
    assert model.generation.segment_frames == 45
    rows = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    # The first stage drops audio and pose of every sample.
    assert not [name for row in rows for name in row if "audio" in name or "pose" in name]
    speed = [json.loads(line) for line in (first / "watch.jsonl").read_text().splitlines()]
    assert [row["step"] for row in speed] == [2, 3]
    assert speed[0]["speed/samples_per_second"] > 0
    assert (first / "validation" / "step_00000003_seed_0.mp4").stat().st_size > 100


def test_no_clip_of_a_validation_is_decoded_whole(
    encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def whole(*_: object) -> None:
        raise AssertionError("the clip was decoded in one piece")

    monkeypatch.setattr("omnihuman_vae.CausalVideoVAE.decode", whole)
    run_stage(toy(stage1.small(), encoded, None), tmp_path / "out")
    assert (tmp_path / "out" / "validation" / "step_00000003_seed_0.mp4").is_file()


def test_the_next_stage_starts_from_it_and_no_other(first: Path, encoded: Path, tmp_path: Path) -> None:
    run_stage(toy(stage2.small(), encoded, first / "model"), tmp_path / "stage2")
    with pytest.raises(ValueError, match=r"has gone through 'text' \(text\), but stage .* table 1, IPA"):
        run_stage(toy(stage3.small(), encoded, first / "model"), tmp_path / "skipped")
    assert not (tmp_path / "skipped").exists()
    run_stage(toy(stage3.small(), encoded, tmp_path / "stage2" / "model"), tmp_path / "stage3")
    rows = (tmp_path / "stage3" / "metrics.jsonl").read_text()
    assert "audio" in rows
    # It went on from the weights of before: the heaviest part of the model has hardly moved in three steps.
    weights = [
        load_safetensors(folder / "model" / "backbone" / "model.safetensors")["patch_embed.proj.weight"].float()
        for folder in (first, tmp_path / "stage3")
    ]
    assert 0 < float((weights[1] - weights[0]).norm() / weights[0].norm()) < 0.2


def test_low_rank_updates_are_merged_into_the_model(first: Path, encoded: Path, tmp_path: Path) -> None:
    config = toy(stage2.small(), encoded, first / "model", lora=LoraSettings(rank=2))
    run_stage(config, tmp_path / "stage2")
    before, after = (
        load_safetensors(folder / "model" / "backbone" / "model.safetensors") for folder in (first, tmp_path / "stage2")
    )
    assert after.keys() == before.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.endswith("linear1.weight") for name in moved)
    assert "patch_embed.proj.weight" not in moved
    with pytest.raises(ValueError, match="lora adapts a trained model, but start is not set"):
        toy(stage1.small(), encoded, None, lora=LoraSettings())


def test_a_start_of_another_architecture_is_named(first: Path, encoded: Path, tmp_path: Path) -> None:
    config = toy(stage2.small(), encoded, first / "model")
    audio = replace(config.model.audio_encoder, changes={"hidden_dim": 32})
    with pytest.raises(ValueError, match=r"model/audio_encoder is of another .*: hidden_dim is 256, not 32"):
        run_stage(replace(config, model=replace(config.model, audio_encoder=audio)), tmp_path / "out")


def test_a_loss_that_is_not_finite_names_its_samples(encoded: Path, tmp_path: Path) -> None:
    config = toy(stage1.small(), encoded, None)
    broken = replace(config, run=replace(config.run, optimizer=OptimizerConfig(lr=1e30, warmup_steps=0)))
    with pytest.raises(FloatingPointError):
        run_stage(broken, tmp_path / "out")
    note = json.loads((tmp_path / "out" / "guard" / "stopped_rank_0.json").read_text())
    known = {hashlib.sha1(str(number).encode()).hexdigest() for number in range(8)}
    assert len(note["keys"]) == 4
    assert set(note["keys"]) <= known


def test_a_run_that_the_guard_stopped_does_not_start_again_by_itself(
    encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy(stage1.small(), encoded, None)
    config = replace(config, run=replace(config.run, checkpoint_minutes=0.0))
    # Every loss is a spike from the third on.
    monkeypatch.setattr("omnihuman_train.watch_guard.LEAST_HISTORY", 2)
    monkeypatch.setattr("omnihuman_train.watch_guard.LEAST_DEVIATION", -1.0)
    with monkeypatch.context() as patch:
        patch.setattr("omnihuman_train.watch_guard.NORMAL", -1e9)
        with pytest.raises(FloatingPointError, match="step 2: the loss is .* a jump"):
            run_stage(config, tmp_path / "out")
    before = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    # What torchrun does with a process that died.
    with pytest.raises(ValueError, match=r"guard/stopped.json: the guard stopped this run \(step 2: the loss is"):
        run_stage(config, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir()) == before
    (tmp_path / "out" / "guard" / "stopped.json").unlink()
    monkeypatch.setattr("omnihuman_train.watch_guard.NORMAL", 1e9)
    run_stage(config, tmp_path / "out")
    assert (tmp_path / "out" / "model").is_dir()


def test_the_command_line_runs_a_stage(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["run", "--config", "omnihuman_train.recipes.stage2:small", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--set", "run.device=cpu", "--parts", "backbone"]) == 2
    assert "a stage on encoded data is one part" in capsys.readouterr().err
    assert main([*arguments, "--set", "run.device=cpu", "--set", f"start={tmp_path}"]) == 2
    assert "has gone through no stage, but stage 'text+audio' follows 'text'" in capsys.readouterr().err
    assert main([*arguments, "--set", "run.device=abacus"]) == 2
    assert "run.device 'abacus' cannot be used here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_pictures_and_a_size_of_the_stage_are_refused_with_what_to_set() -> None:
    recipe = stage1.small()
    stage = Stage(name="text", steps=3, ratios=stage1.RATIOS, pictures=True)
    run = replace(recipe.run, steps=3)
    with pytest.raises(ValueError, match="stages: pictures of 'text' is for .* leave it out and set segment.latent_fr"):
        replace(recipe, stages=(stage,), run=run)
    stage = replace(stage, pictures=False, batch_size=8)
    with pytest.raises(ValueError, match="stages: batch_size of 'text' is 8, .* run, 64; leave it out, and set run"):
        replace(recipe, stages=(stage,), run=run)
    assert replace(recipe, stages=(replace(stage, batch_size=64),), run=run).stage.batch_size == 64


def test_stages_do_not_repeat_what_was_drawn_before(encoded: Path) -> None:
    configs = [toy(stage1.small(), encoded, None)]
    configs += [toy(recipe.small(), encoded, Path("before")) for recipe in (stage2, stage3)]
    assert {config.run.seed for config in configs} == {0}
    alone = World(device=torch.device("cpu"))
    sources = [streams(config, alone)[0] for config in configs]
    drawn = [[source(step) for step in range(6)] for source in sources]
    seeds = [{seed for batch in batches for seed in batch["seeds"].tolist()} for batches in drawn]
    assert all(len(own) == 24 for own in seeds)
    assert len(set.union(*seeds)) == 3 * 24
    order = [[key for batch in batches for key in batch["key"]] for batches in drawn]
    assert len({tuple(keys) for keys in order}) == 3
    windows = [[(batch["start"], batch["motion_latents"]) for batch in batches] for batches in drawn]
    assert len({tuple(draws) for draws in windows}) == 3
    # The same stage again draws the same.
    again = streams(configs[1], alone)[0]
    assert again(4)["seeds"].equal(drawn[1][4]["seeds"])


def test_segments_of_one_frame_are_the_pictures_of_a_stage(encoded: Path) -> None:
    segment = SegmentConfig(latent_frames=1, motion_latents=0, continuing_ratio=0.0)
    config = toy(stage1.small(), encoded, None, segment=segment)
    (source,) = streams(config, World(device=torch.device("cpu")))
    for step in range(4):
        batch = source(step)
        assert (batch["start"], batch["stop"], batch["motion_latents"]) == (0, 1, 0)
