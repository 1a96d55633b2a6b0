"""Runs the tests of ``interpreted/`` in processes of their own, where Triton interprets kernels on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreted"
PATHS = [*sorted(FOLDER.glob("test_*.py")), FOLDER / "gpu_check"]


def test_every_test_is_run():
    files = [file for path in PATHS for file in ([path] if path.is_file() else path.glob("test_*.py"))]
    assert len(files) > len(PATHS)
    assert sorted(files) == sorted(FOLDER.rglob("test_*.py"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem.removeprefix("test_"))
def test_in_interpreter(path):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(path)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
