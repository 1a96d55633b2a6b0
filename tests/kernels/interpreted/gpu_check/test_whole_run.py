"""From the command line to the files."""

import contextlib
import functools
import io
import json
import subprocess
import sys

import pytest
import torch

from tests.kernels.interpreted.gpu_check.builders import FOLDER, case, plain, wrong


def good_canary(options):
    for kernel in options.kernels:
        row = {"op": "joint_attention", "kernel": kernel, "tile": None}
        yield {**row, "status": "begins"}
        yield {**row, "status": "agrees"}


def test_a_run_where_every_group_hangs_ends_within_nine_minutes(whole_run):
    def hang(options, seconds, clock):
        begins = {"op": "joint_attention", "kernel": (options.kernels or [""])[0], "tile": None, "status": "begins"}
        yield begins if options.kernels else {"op": options.group, "status": "agrees"}
        clock[0] += seconds
        yield {"status": "failed", "problem": f"did not end within {seconds:.0f} s"}

    status, rows, seconds, _ = whole_run(hang)
    assert status == 1
    assert seconds < 9 * 60
    assert {row["op"] for row in rows} == {*whole_run.groups, "joint_attention"}
    assert {row["status"] for row in rows} == {"agrees", "failed", "skipped"}
    logs = {row["log"] for row in rows if row["status"] == "failed"}
    assert {"kernels_some-gpu-80gb_canary_1.log", "kernels_some-gpu-80gb_attention.log"} <= logs


def test_a_good_run_and_a_crash(whole_run):
    def work(options, seconds, clock):
        if options.group == "canary":
            yield from good_canary(options)
            return
        clock[0] += 10
        assert options.tiles == "{}"
        yield {"op": options.group, "status": "agrees"}
        if options.group == "packed_attention":
            yield {"status": "failed", "problem": "CUDA error: misaligned address"}

    status, rows, _, seen = whole_run(work)
    assert (status, tuple(seen)) == (1, ("canary", *whole_run.groups))
    (problem,) = [(row["op"], row["problem"]) for row in rows if row["status"] == "failed"]
    assert problem == ("packed_attention", "CUDA error: misaligned address")


def test_the_start_of_a_process_is_part_of_its_time(whole_run, machine, monkeypatch):
    """What it takes to import torch would otherwise come on top, and a group that only ran long be called hung."""
    given = []

    def slow(options, seconds, clock):
        until, began = options.until, clock[0]
        assert until == began + seconds - machine.gpu_check.GRACE
        clock[0] += 12
        flags = ["gpu_check.py", "--group", options.group, "--until", str(until)]
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", flags)
            patch.setattr(machine.group, "run_group", lambda group, left, kernels: given.append((seconds, left)) or 0)
            assert machine.gpu_check.main() == 0
        yield {"op": options.group, "status": "agrees"}

    whole_run(slow, "--groups", "modulation")
    ((seconds, left),) = given
    assert left == pytest.approx(seconds - machine.gpu_check.GRACE - 12)


def found(options, seconds, clock):
    yield {"op": f"{options.group} one", "shape": "s", "status": "agrees"}
    yield {"op": f"{options.group} two", "shape": "s", "status": "agrees"}


def test_rows_of_groups_that_were_not_run_stay(whole_run):
    whole_run(found, "--groups", "modulation,rms_norm_silu")

    def again(options, seconds, clock):
        yield {"op": "new", "shape": "s", "status": "agrees"}

    _, rows, *_ = whole_run(again, "--groups", "modulation")
    assert [row["op"] for row in rows] == ["rms_norm_silu one", "rms_norm_silu two", "new"]
    # A group for which no time was left says nothing against what is known.
    _, rows, *_ = whole_run(again, "--groups", "rms_norm_silu", "--minutes", "0.1")
    assert [row["op"] for row in rows] == ["rms_norm_silu one", "rms_norm_silu two", "new", "rms_norm_silu"]
    assert rows[-1]["status"] == "skipped"


@pytest.mark.parametrize("how", ["interrupt", "kill"])
def test_a_run_that_is_stopped_loses_nothing(whole_run, machine, tmp_path, how):
    whole_run(found, "--groups", "modulation,rms_norm_silu")

    def stopped(options, seconds, clock):
        if options.group == "modulation":
            yield {"op": "modulation one", "shape": "s", "status": "agrees", "new": True}
            # Nothing is written after a kill.
            raise KeyboardInterrupt if how == "interrupt" else MemoryError
        yield from ()

    run = functools.partial(whole_run, stopped, "--groups", "modulation,rms_norm_silu")
    if how == "interrupt":
        assert run()[0] == 130
    else:
        with pytest.raises(MemoryError):
            run()
    rows = machine.report.read(tmp_path)
    assert sorted((row["op"], row.get("new", False)) for row in rows) == [
        ("modulation one", True), ("modulation two", False), ("rms_norm_silu one", False), ("rms_norm_silu two", False),
    ]  # fmt: skip


def test_a_whole_run_on_a_gpu_that_is_made_up(whole_run, check, machine, monkeypatch, capsys):
    """From ``main`` to the files, every group in this process; one op of one group is wrong."""
    group, kind = check
    cases = machine.cases
    for name in cases.GROUPS:
        made = [plain(f"{name}_good"), plain(f"{name}_bad", ours=wrong)] if name == "modulation" else [plain(name)]
        monkeypatch.setitem(cases.GROUPS, name, lambda made=made: (case(kind, **one) for one in made))
    compare = group.compare
    monkeypatch.setattr(group, "compare", lambda case, make: compare(case, make, torch.float32))
    monkeypatch.setattr(machine.tiles, "error_of", lambda kind, width, tile: 0.0)
    monkeypatch.setattr(machine.tiles, "try_tile", lambda kind, tile: {"status": "alternative failed", "problem": "no"})
    monkeypatch.setattr(machine.small, "WAYS", ())

    def in_this_process(options, seconds, clock):
        clock[0] += 5
        with contextlib.redirect_stdout(io.StringIO()) as output:
            assert group.run_group(options.group, seconds, options.kernels) == 0
        yield from (json.loads(line) for line in output.getvalue().splitlines())

    status, rows, _, seen = whole_run(in_this_process)
    assert (status, tuple(seen)) == (1, ("canary", *whole_run.groups))
    measured = [row["op"] for row in rows if row["status"] == "measured"]
    order = [name for name in whole_run.groups if name in cases.GROUPS]
    assert measured == [f"{name}_good" if name == "modulation" else name for name in order]
    assert [row["op"] for row in rows if row["status"] == "failed"] == ["modulation_bad"]
    assert {"device", "torch", "triton", "date", "seconds", "floor", "peers", "targets", "group"} <= set(
        next(row for row in rows if row["status"] == "measured")
    )


def test_the_whole_check_imports_with_five_packages_installed():
    """As from a bare checkout: torch, triton, pytest, numpy, einops and what these need."""
    code = f"""
import sys
from importlib.metadata import packages_distributions, requires
from packaging.requirements import Requirement

allowed, left = set(), ["torch", "triton", "pytest", "numpy", "einops", "packaging"]
while left:
    name = left.pop().lower().replace("_", "-")
    if name not in allowed:
        allowed.add(name)
        try:
            needs = [Requirement(text) for text in requires(name) or ()]
        except Exception:
            continue
        left += [need.name for need in needs if need.marker is None or need.marker.evaluate({{"extra": ""}})]
own = ("omnihuman", "tests")
for module, names in packages_distributions().items():
    if not any(n.lower().replace("_", "-") in allowed for n in names) and not module.startswith(own):
        sys.modules[module] = None
# Where it is not installed there is nothing to hide.
assert sys.modules.get("diffusers") is None
sys.path[:0] = {[str(FOLDER.parents[1] / part) for part in ("", "kernels/src", "packages/omnihuman-core/src")]!r}
sys.path.insert(0, {str(FOLDER)!r})
import gpu_check, apart, cases, group, measure, dit, plot, report, small, tables, tiles
from tests.kernels.agreement import assert_agrees
assert {{*cases.GROUPS, "agreement", "tiles"}} == set(gpu_check.GROUPS)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
