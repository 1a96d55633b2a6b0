"""A worker is killed by force, or torchrun is asked to stop: nothing is lost but the steps since, or nothing at all."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from omnihuman_core.checkpoint import load_safetensors
from omnihuman_train.resuming import checkpoints

from .curves import check_equal, rows
from .ranks import ROOT, Server


def torchrun(out: Path, latents: Path, what: str) -> subprocess.CompletedProcess[str]:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3"),
        *("-m", "tests.train.distributed.elastic", str(out), str(latents), what),
    ]
    # Restarted processes would otherwise find the addresses of the dead ones in torchrun's store.
    own_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    environment = {**os.environ, **own_store, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_a_killed_worker_costs_the_steps_since_the_last_checkpoint(tmp_path: Path, latents: Path, two: Path) -> None:
    done = torchrun(tmp_path, latents, "kill")
    assert done.returncode == 0, done.stderr
    # It did happen.
    assert "Signal 9 (SIGKILL)" in done.stderr or "exitcode: -9" in done.stderr
    check_equal(tmp_path, two)
    assert rows(tmp_path) == rows(two)
    assert load_safetensors(tmp_path / "model.safetensors").keys()


def test_torchrun_that_is_stopped_loses_no_step(tmp_path: Path, latents: Path, ranks: Server, two: Path) -> None:
    done = torchrun(tmp_path, latents, "stop")
    assert "stopped by SIGTERM after" in done.stderr, done.stderr
    # Torchrun's own, whatever its processes end with: 75 is for who starts them without it.
    assert done.returncode == 1
    (saved,) = checkpoints(tmp_path / "checkpoints")
    assert "step_00000010" <= saved.name < "step_00000020"
    assert len(rows(tmp_path)) == int(saved.name[-8:])
    assert ranks.run(2, "train", out=str(tmp_path), latents=str(latents)) == ["", ""]
    assert rows(tmp_path) == rows(two)
    for file in ("model", "ema"):
        mine, theirs = (load_safetensors(path / f"{file}.safetensors") for path in (tmp_path, two))
        assert all(torch.equal(mine[key], value) for key, value in theirs.items())


def test_one_process_that_is_stopped_stops_all_after_the_same_step(
    tmp_path: Path, latents: Path, ranks: Server, two: Path
) -> None:
    ended = ranks.run(2, "train", out=str(tmp_path), latents=str(latents), signalled=5)
    assert ended == ["Stopped: stopped by SIGUSR1 after 7 of 20 steps; they are saved, the same command goes on"] * 2
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step_00000007"]
    assert ranks.run(2, "train", out=str(tmp_path), latents=str(latents)) == ["", ""]
    assert rows(tmp_path) == rows(two)
    assert all(
        torch.equal(value, load_safetensors(two / "model.safetensors")[key])
        for key, value in load_safetensors(tmp_path / "model.safetensors").items()
    )
