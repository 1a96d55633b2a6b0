"""The VAE against its discriminators in two processes: one game, one set of weights, one checkpoint."""

import json
from pathlib import Path

import pytest
import torch

from omnihuman_core.checkpoint import load_safetensors
from omnihuman_core.model_dir import load_component
from omnihuman_train.data.clips import render_clips
from omnihuman_train.data.pack_characters import pack_characters
from omnihuman_train.recipes.vae import small
from omnihuman_train.resuming import checkpoints

from .curves import distance
from .ranks import Server


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae") / "clips"
    drawn = small().clips
    assert drawn is not None
    render_clips(drawn, folder, progress=lambda count: None)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, clips: Path, ranks: Server) -> Path:
    out = tmp_path_factory.mktemp("alone")
    assert ranks.run(1, "vae", out=str(out), clips=str(clips)) == [""]
    return out


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, clips: Path, ranks: Server) -> Path:
    out = tmp_path_factory.mktemp("pair")
    assert ranks.run(2, "vae", out=str(out), clips=str(clips)) == ["", ""]
    return out


def rows(out: Path) -> list[dict[str, float]]:
    """Rows without the time and without ``psnr``: a mean of logarithms is not the logarithm of a mean."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", "psnr")} for line in lines]


def test_two_processes_play_the_game_of_one(alone: Path, pair: Path) -> None:
    mine, theirs = rows(pair), rows(alone)
    assert [row["step"] for row in mine] == [1, 2, 3, 4, 5, 6]
    assert "adversarial" in mine[-1]
    assert "grad_norm/discriminator" in mine[-1]
    for row, wanted in zip(mine, theirs, strict=True):
        assert row == pytest.approx(wanted, abs=1e-5, rel=1e-5)
    assert distance(pair, alone) < 1e-4
    assert distance(pair, alone, "ema") < 1e-4


def test_the_second_process_trains_the_same_weights_and_writes_none(pair: Path) -> None:
    first, second = (load_safetensors(pair / f"{name}model.safetensors") for name in ("", "1"))
    assert all(torch.equal(second[key], value) for key, value in first.items())
    (last,) = checkpoints(pair / "checkpoints")
    assert sorted(path.name for path in last.iterdir()) == [
        "config.toml",
        "ema.safetensors",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]


def test_going_on_equals_never_having_stopped(tmp_path: Path, clips: Path, ranks: Server, pair: Path) -> None:
    ended = ranks.run(2, "vae", out=str(tmp_path), clips=str(clips), minutes=0.0, stop=4)
    assert ended == ["Stop: ", "Stop: "]
    assert checkpoints(tmp_path / "checkpoints")[-1].name == "step_00000004"
    assert ranks.run(2, "vae", out=str(tmp_path), clips=str(clips)) == ["", ""]
    for file in ("model", "ema"):
        mine, theirs = (load_safetensors(path / f"{file}.safetensors") for path in (tmp_path, pair))
        assert all(torch.equal(mine[key], value) for key, value in theirs.items())
    assert rows(tmp_path) == rows(pair)


def test_a_full_disk_stops_both_and_leaves_the_checkpoint_before(tmp_path: Path, clips: Path, ranks: Server) -> None:
    for error in ranks.run(2, "vae", out=str(tmp_path), clips=str(clips), minutes=0.0, disk=10_000):
        assert error.startswith("CheckpointError: ")
        assert "cannot be written" in error
        assert "\n" not in error
    folder = tmp_path / "checkpoints"
    assert [path.name for path in folder.iterdir()] == [path.name for path in checkpoints(folder)] != []


def test_the_recipe_leaves_one_model_directory(tmp_path: Path, ranks: Server) -> None:
    for error in ranks.run(2, "vae_recipe", out=str(tmp_path), parts=["render", "vae"]):
        assert "part 'render' is the work of one process; run --parts render without torchrun" in error
    assert ranks.run(1, "vae_recipe", out=str(tmp_path), parts=["render"]) == [""]
    assert ranks.run(2, "vae_recipe", out=str(tmp_path), parts=["vae"]) == ["", ""]
    vae = load_component(tmp_path / "model", "vae")
    assert (vae.latents_std != 1).all()
    for error in ranks.run(3, "vae_recipe", out=str(tmp_path), parts=["vae"]):
        assert "run.batch_size 2 must be a multiple of the 3 processes" in error


def test_the_recipe_shares_packed_clips(tmp_path: Path, ranks: Server) -> None:
    data = tmp_path / "clips"
    pack_characters(data, count=3, frames=9, sizes=[(32, 32)], shard_size=2, progress=lambda count: None)
    assert ranks.run(2, "vae_recipe", out=str(tmp_path / "run"), parts=["vae"], data=str(data)) == ["", ""]
    assert (load_component(tmp_path / "run" / "model", "vae").latents_std != 1).any()
    (last,) = checkpoints(tmp_path / "run" / "vae" / "checkpoints")
    assert last.name == "step_00000002"
