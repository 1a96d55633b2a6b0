"""A group in a process of its own."""

import sys
import time
from pathlib import Path

import pytest


def script(text):
    return [sys.executable, "-c", f"import os, sys, time\nsay = lambda x: print(x, flush=True)\n{text}"]


def test_rows_of_a_process_come_as_it_prints_them(modules, tmp_path):
    """They are not held back until it ends, and other lines are no rows."""
    waits = f"say('noise')\nsay('{{\"op\": 1}}')\nwhile not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)"
    log = tmp_path / "a.log"
    rows = modules.apart.rows_of(script(waits), seconds=60, log=log)
    assert next(rows) == {"op": 1}
    (tmp_path / "go").touch()
    assert list(rows) == []
    assert not log.exists()


@pytest.mark.parametrize(
    ("text", "limits", "problem"),
    [
        ("print('Traceback', file=sys.stderr)\nsys.exit('CUDA error: misaligned address')", {}, "misaligned address"),
        ("os.abort()", {}, "crashed with exit status -6"),
        ("say('{\"op\": 2}')\nsys.stdout.write('{\"cut')\ntime.sleep(60)", {"seconds": 1.5}, "did not end within 2 s"),
        ("while True: (say('{\"op\": 2}'), time.sleep(0.1))", {"seconds": 1.5}, "did not end within 2 s"),
        ("say('{\"op\": 2}')\ntime.sleep(60)", {"silence": 1.0}, "hung: no result for 1 s"),
    ],
)
def test_a_process_that_does_not_end_well_leaves_its_rows_and_the_reason(modules, tmp_path, text, limits, problem):
    log = tmp_path / "logs/a.log"
    *rows, last = modules.apart.rows_of(script(text), log=log, **{"seconds": 60, **limits})
    assert all(row == {"op": 2} for row in rows)
    assert bool(rows) == ("op" in text)
    assert last["status"] == "failed"
    assert problem in last["problem"]
    if "stderr" in text:
        assert log.read_text().splitlines() == ["Traceback", "CUDA error: misaligned address"]


def test_a_process_goes_when_nobody_listens_and_takes_its_children(modules, tmp_path):
    child = "import subprocess; p = subprocess.Popen(['sleep', '600']); say('{\"pid\": %d}' % p.pid); time.sleep(600)"
    rows = modules.apart.rows_of(script(child), seconds=60, log=tmp_path / "a.log")
    pid = next(rows)["pid"]
    rows.close()
    # The kernel and whoever adopted it may take a moment.
    deadline = time.monotonic() + 20
    while runs(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not runs(pid)


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False
