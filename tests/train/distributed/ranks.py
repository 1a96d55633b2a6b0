"""Runs jobs in several processes: one server imports everything once and forks the processes of each job.

A program of its own, so that the processes fork from one that has no threads yet.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]


class Server:
    """Starts the server and gives it jobs."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        for name in ("RANK", "WORLD_SIZE"):
            environment.pop(name, None)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.train.distributed.ranks"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, world: int, job: str, /, **arguments: Any) -> list[str]:
        """Run function ``job`` of ``jobs.py`` in ``world`` processes; returns what each raised, as one line, or ''."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([world, job, arguments]) + "\n")
        self._process.stdin.flush()
        errors: list[str] = json.loads(self._process.stdout.readline())
        return errors

    def close(self) -> None:
        """End the server."""
        self._process.terminate()
        self._process.wait()


def serve() -> None:
    # What jobs print is for a person to read; the answers have this channel alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from tests.train.distributed import jobs

    for line in sys.stdin:
        world, job, arguments = json.loads(line)
        with tempfile.TemporaryDirectory() as folder:
            children = [_fork(rank, world, getattr(jobs, job), arguments, Path(folder)) for rank in range(world)]
            for child in children:
                os.waitpid(child, 0)
            results = [Path(folder) / f"{rank}.txt" for rank in range(world)]
            errors = [path.read_text() if path.exists() else "died" for path in results]
        answers.write(json.dumps(errors) + "\n")
        answers.flush()


def _fork(rank: int, world: int, job: Any, arguments: dict[str, Any], folder: Path) -> int:
    if child := os.fork():
        return child
    try:
        import torch.distributed as dist

        if world > 1:
            dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
        job(**arguments)
        # A whole run closes the group itself.
        if dist.is_initialized():
            dist.barrier()
        error = ""
    except BaseException as reason:
        error = f"{type(reason).__name__}: {reason}"
        if not isinstance(reason, jobs_stop()):
            traceback.print_exc()
    (folder / f"{rank}.txt").write_text(error)
    # Nothing that threads still write may go on: this is how a process ends that is killed.
    os._exit(0)


def jobs_stop() -> type[BaseException]:
    from tests.train.distributed.jobs import Stop

    return Stop


if __name__ == "__main__":
    serve()
