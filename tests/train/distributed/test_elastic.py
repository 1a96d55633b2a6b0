"""A worker is killed by force: torchrun starts all of them again, and nothing but the steps since is done twice."""

import os
import subprocess
import sys
from pathlib import Path

from omnihuman_core.checkpoint import load_safetensors

from .curves import check_equal, rows
from .ranks import ROOT


def test_a_killed_worker_costs_the_steps_since_the_last_checkpoint(tmp_path: Path, latents: Path, two: Path) -> None:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3"),
        *("-m", "tests.train.distributed.elastic", str(tmp_path), str(latents)),
    ]
    # Restarted processes would otherwise find the addresses of the dead ones in torchrun's store.
    own_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    environment = {**os.environ, **own_store, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # It did happen.
    assert "Signal 9 (SIGKILL)" in done.stderr or "exitcode: -9" in done.stderr
    check_equal(tmp_path, two)
    assert rows(tmp_path) == rows(two)
    assert load_safetensors(tmp_path / "model.safetensors").keys()
