"""A process of its own for a piece of work, so that a crash or a hang costs that piece alone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Rows = Generator[Row, None, None]

# Seconds between two looks at what a process has written.
LOOK = 0.5


def rows_of(command: Sequence[str], *, seconds: float, log: Path, silence: float | None = None) -> Rows:
    """The rows that a process prints, as it prints them: lines of JSON that start with ``{``.

    Whatever happens the process and its children are gone afterwards, and what it wrote to its standard error lies in
    ``log``, which goes away if it wrote nothing.

    Args:
        command: What to run.
        seconds: The process is stopped after this long.
        log: Where its standard error goes.
        silence: It is stopped if it prints no row for this long; None lets it.

    Yields:
        Its rows, and at the end one of status ``failed`` with the ``problem`` if it did not end well.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder, "rows")
        # Files, not pipes: a child of a stopped process may hold a pipe open for good.
        with said.open("wb") as out, log.open("wb") as errors:
            process = subprocess.Popen(command, stdout=out, stderr=errors, start_new_session=True)
        began = heard = time.monotonic()
        problem, rest = "", b""
        try:
            with said.open("rb") as spoken:
                while True:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(LOOK)
                    ended = process.poll() is not None
                    *lines, rest = (rest + spoken.read()).split(b"\n")
                    for line in lines:
                        if line[:1] == b"{":
                            yield json.loads(line)
                            heard = time.monotonic()
                    now = time.monotonic()
                    if ended:
                        break
                    if now - began > seconds:
                        problem = f"did not end within {seconds:.0f} s"
                    elif silence is not None and now - heard > silence:
                        problem = f"hung: no result for {silence:.0f} s"
                    if problem:
                        break
        finally:
            _stop(process)
    if process.returncode and not problem:
        lines_of_log = log.read_text(errors="replace").strip().splitlines()
        problem = lines_of_log[-1] if lines_of_log else f"crashed with exit status {process.returncode}"
    if not log.stat().st_size:
        log.unlink()
    if problem:
        yield {"status": "failed", "problem": problem}


def _stop(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    # A driver may keep a process that hangs in a kernel; nothing here waits for it.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
