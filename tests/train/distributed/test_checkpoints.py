"""Checkpoints of several processes: going on in the same and in other numbers, a full disk, another architecture."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from omnihuman_core.checkpoint import load_safetensors
from omnihuman_train.resuming import checkpoints

from .curves import check_equal, rows
from .ranks import Server


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, latents: Path, ranks: Server) -> Path:
    """A run of two processes that ended before step 6, with a checkpoint of every step."""
    out = tmp_path_factory.mktemp("stopped")
    ended = ranks.run(2, "train", out=str(out), latents=str(latents), minutes=0.0, stop=6)
    assert ended == ["Stop: ", "Stop: "]
    return out


def test_every_process_writes_its_shards_without_a_pickle(stopped: Path) -> None:
    last = checkpoints(stopped / "checkpoints")[-1]
    # The one of step 6 may have been under way.
    assert last.name in ("step_00000005", "step_00000006")
    assert sorted(path.name for path in last.iterdir()) == ["config.toml", "shards", "state.json"]
    files = sorted((last / "shards").iterdir())
    assert [path.suffix for path in files] == [".safetensors"] * 2
    key = "model.backbone.double_blocks.0.video.qkv.weight"
    shapes = []
    for path in files:
        with safe_open(path, "pt") as file:
            shapes.append(tuple(file.get_slice(key).get_shape()))
    assert shapes == [(96, 64), (96, 64)]


def test_going_on_equals_never_having_stopped(
    tmp_path: Path, latents: Path, ranks: Server, stopped: Path, two: Path
) -> None:
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    assert ranks.run(2, "train", out=str(tmp_path), latents=str(latents)) == ["", ""]
    for file in ("model", "ema"):
        mine, theirs = (load_safetensors(path / f"{file}.safetensors") for path in (tmp_path, two))
        assert all(torch.equal(mine[key], value) for key, value in theirs.items())
    assert rows(tmp_path) == rows(two)


def test_two_then_four_then_two_processes(
    tmp_path: Path, latents: Path, ranks: Server, stopped: Path, one: Path
) -> None:
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    # The four as two replicas of two shards, each with one sample at a time.
    changes = {"dp_replicate": 2, "accumulate": 2}
    ended = ranks.run(4, "train", out=str(tmp_path), latents=str(latents), minutes=0.0, stop=12, **changes)
    assert ended == ["Stop: "] * 4
    assert checkpoints(tmp_path / "checkpoints")[-1].name in ("step_00000011", "step_00000012")
    assert ranks.run(2, "train", out=str(tmp_path), latents=str(latents)) == ["", ""]
    check_equal(tmp_path, one)


def test_one_then_two_then_one_process(tmp_path: Path, latents: Path, ranks: Server, one: Path) -> None:
    for world, stop in ((1, 5), (2, 11)):
        ended = ranks.run(world, "train", out=str(tmp_path), latents=str(latents), minutes=0.0, stop=stop)
        assert ended == ["Stop: "] * world
    assert ranks.run(1, "train", out=str(tmp_path), latents=str(latents)) == [""]
    check_equal(tmp_path, one)


def test_a_full_disk_leaves_the_checkpoint_before_whole(
    tmp_path: Path, latents: Path, ranks: Server, two: Path
) -> None:
    ended = ranks.run(2, "train", out=str(tmp_path), latents=str(latents), minutes=0.0, disk=30_000)
    for error in ended:
        assert error.startswith("CheckpointError: ")
        assert "cannot be written ([Errno 27] File too large)" in error
        assert "\n" not in error
    folder = tmp_path / "checkpoints"
    assert [path.name for path in folder.iterdir()] == [path.name for path in checkpoints(folder)] != []
    assert ranks.run(2, "train", out=str(tmp_path), latents=str(latents)) == ["", ""]
    assert rows(tmp_path) == rows(two)


@pytest.mark.parametrize("kind", ["shards", "whole"])
def test_a_checkpoint_of_another_architecture_is_one_line(
    tmp_path: Path, latents: Path, ranks: Server, stopped: Path, one: Path, kind: str
) -> None:
    shutil.copytree(stopped if kind == "shards" else one, tmp_path, dirs_exist_ok=True)
    for error in ranks.run(2, "train", out=str(tmp_path), latents=str(latents), wide=True):
        assert "the checkpoint is of another architecture: mouth_probe" in error.replace("model.mouth", "mouth")
        assert "has shape (1," in error
        assert "\n" not in error


def test_a_broken_shard_is_one_line(tmp_path: Path, latents: Path, ranks: Server, stopped: Path) -> None:
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    shard = next((checkpoints(tmp_path / "checkpoints")[-1] / "shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:-100])
    for error in ranks.run(2, "train", out=str(tmp_path), latents=str(latents)):
        assert error.startswith("ValueError: ")
        assert "broken" in error
        assert "\n" not in error


@pytest.mark.parametrize("which", [0, 1])
def test_a_missing_shard_is_one_line(tmp_path: Path, latents: Path, ranks: Server, stopped: Path, which: int) -> None:
    # Torch reads a checkpoint without the first one as if nothing were amiss.
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    shard = sorted((checkpoints(tmp_path / "checkpoints")[-1] / "shards").iterdir())[which]
    shard.unlink()
    for error in ranks.run(2, "train", out=str(tmp_path), latents=str(latents)):
        assert error.startswith(f"ValueError: {shard}: missing, or broken (it had ")
        assert error.endswith("delete this checkpoint and run again")
