"""The benchmark's own logic, with a clock that needs no GPU and kernels in the interpreter."""

import contextlib
import copy
import functools
import importlib
import inspect
import io
import itertools
import json
import re
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch

from omnihuman_kernels import _launch, performance
from omnihuman_kernels.gated_residual import gated_residual
from omnihuman_kernels.joint_attention import op as joint
from tests.kernels import references

FOLDER = Path(__file__).parents[3] / "benchmarks/kernels"
SEGMENTS = (2, 3)


@pytest.fixture
def modules(monkeypatch):
    """The benchmark's modules by name, in an interpreter that forgets them afterwards."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = [path.stem for path in FOLDER.glob("*.py")]
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def check(modules, monkeypatch):
    """The module of a group's process, with a clock that counts nothing, and the class of cases."""
    monkeypatch.setattr(
        modules.measure, "interleaved", lambda functions, seconds: {n: (f(), 1e-3)[1] for n, f in functions.items()}
    )
    monkeypatch.setattr(torch, "compile", lambda function: function)
    return modules.group, modules.cases.Case


def case(kind, **changes):
    options = {"segments": SEGMENTS}
    given = {
        "op": "gated_residual",
        "shape": "small",
        "make": lambda: [torch.randn(1, 5, 16), torch.randn(1, 5, 16), torch.randn(1, 2, 16)],
        "ours": functools.partial(gated_residual, **options),
        "reference": functools.partial(references.gated_residual, **options),
        "eager": functools.partial(references.gated_residual, **options),
        "cost": (performance.gated_residual(1, 5, 16), performance.gated_residual(1, 5, 16, backward=True)),
        "bound": "memory",
        "differentiable": 3,
        "targets": {("forward", "copy"): (0.5, 0.9), ("forward", "eager"): (2.0, 3.0)},
    }
    return kind(**{**given, **changes})


def test_an_op_that_agrees_passes_and_a_wrong_one_does_not(check, capsys):
    group, kind = check
    good = case(kind)
    # bfloat16 is cut off by the interpreter; float32 shows that the comparison itself works.
    assert group.compare(good, good.make, torch.float32) == ""
    wrong = case(kind, ours=lambda r, x, g: gated_residual(r, x, g * 1.1, segments=SEGMENTS))
    assert "tensor" in group.compare(wrong, wrong.make, torch.float32)


def test_q_and_k_are_measured_and_compared_as_slices_of_the_projection(check, monkeypatch):
    group, _ = check
    import cases

    from omnihuman_core.ops import qk_norm_rope

    monkeypatch.setattr(cases, "noise", torch.randn)
    for name, value in {"LENGTH": 5, "HEADS": 2, "HEAD_DIM": 16}.items():
        monkeypatch.setattr(cases, name, value)
    packed = (5 * 3 * 2 * 16, 3 * 2 * 16, 16, 1)
    seen = []

    def ours(q, k, *others, **options):
        seen.append((q.stride(), k.stride()))
        return qk_norm_rope(q, k, *others, **options)

    (described,) = cases.qk_norm_rope_cases()
    described = replace(described, ours=functools.partial(ours, eps=cases.EPS), eager=None)
    assert group.compare(described, described.make) == ""
    for direction in ("forward", "backward"):
        group.measure(described, direction, 1e12)
    assert len(seen) >= 3
    assert set(seen) == {(packed, packed)}


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_row_holds_the_floor_and_the_targets(check, modules, direction):
    group, kind = check
    row = group.measure(case(kind), direction, copy=1e6)
    assert row["floor"] == pytest.approx(3 * 5 * 16 * 2 / 1e6)
    assert set(row["peers"]) == {"eager", "compile"}
    assert [t["against"] for t in row["targets"]] == (["copy", "eager"] if direction == "forward" else [])
    line = modules.report.describe({"op": "x", "shape": "y", "status": "measured", **row})
    assert ("MISSED" in line) == (direction == "forward")


def test_a_peer_that_cannot_run_is_noted(check):
    def broken(*args):
        raise RuntimeError("no such backend")

    group, kind = check
    row = group.measure(case(kind, eager=None, peers={"cudnn": broken}), "forward", copy=1e6)
    assert row["refused"] == {"cudnn": "RuntimeError: no such backend"}


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_compiled_peers_keep_what_the_next_backward_needs(check, direction):
    """Compiled code reuses the memory of what it saved, and refuses a second backward, unless it is told not to."""
    import torch._functorch.config as settings

    group, kind = check
    seen = []

    def compiled(*inputs):
        seen.append(settings.donated_buffer)
        return references.gated_residual(*inputs, segments=SEGMENTS)

    with settings.patch(donated_buffer=True):
        group.measure(case(kind, compiled=compiled), direction, copy=1e6)
        # Compilation is done by the first call; later ones only time it.
        assert seen[0] is False
        assert settings.donated_buffer is True


def test_the_compiled_peer_of_norm_and_rotation_is_the_eager_op(check):
    import cases

    torch.manual_seed(0)
    q, k, _ = torch.randn(2, 5, 3, 2, 16).unbind(2)
    angles, weights = torch.randn(5, 8), torch.randn(2, 16)
    inputs = (q, k, *weights, angles.cos(), angles.sin())
    expected = cases.EAGER.qk_norm_rope(*inputs, eps=cases.EPS)
    torch.testing.assert_close(cases.real_qk_norm_rope(*inputs, eps=cases.EPS), expected)
    assert next(cases.qk_norm_rope_cases()).compiled.func is cases.real_qk_norm_rope


def test_a_red_op_shows_no_speed(check, modules, tmp_path, monkeypatch):
    group, kind = check
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU 80GB")
    row = {"op": "x", "shape": "y", **group.measure(case(kind), "forward", copy=1e6), "status": "measured"}
    red = {"op": "bad", "shape": "y", "status": "failed", "problem": "tensor 0: error 3", "log": "a.log"}
    modules.report.write([row, red], tmp_path)
    (table,) = tmp_path.glob("kernels_some-gpu-80gb_*.md")
    text = table.read_text()
    assert "| x | y | forward |" in text
    assert "- bad y: failed: tensor 0: error 3 (more in a.log)" in text
    assert "| bad" not in text
    assert [one["op"] for one in modules.report.read(tmp_path)] == ["x", "bad"]


def test_the_plot_marks_every_measured_op(check):
    group, kind = check
    import plot

    row = {
        "op": "a<b",
        "shape": "y",
        "device": "G",
        "status": "measured",
        **group.measure(case(kind), "forward", 1e12),
    }
    picture = ElementTree.fromstring(plot.draw([row, {"status": "failed"}]))
    assert len(picture.findall("{http://www.w3.org/2000/svg}circle")) == 1
    with pytest.raises(ValueError, match="no measured row"):
        plot.draw([{"status": "failed"}])


def test_the_cache_is_emptied_by_reading_and_launches_are_hidden(check, monkeypatch):
    import measure

    done = []

    class Event:
        def __init__(self, enable_timing):
            pass

        def record(self):
            done.append("clock")

        def elapsed_time(self, end):
            return 3.0

    class Dirt:
        def __getattr__(self, name):
            return lambda: done.append(name)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: done.append("sleep"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("wait"))
    assert measure._once(lambda: done.append("work"), Dirt()) == 3e-3
    assert done == ["sum", "sleep", "clock", "work", "clock", "wait"]


def plain(name, **changes):
    """A case that needs no kernel: the formula against itself."""
    function = functools.partial(references.gated_residual, segments=SEGMENTS)
    return {"op": name, "ours": function, "reference": function, "eager": None, "directions": ("forward",), **changes}


@pytest.fixture
def machine(modules, monkeypatch):
    """A GPU that is made up: kernels run in the interpreter, with the tiles of Hopper's table."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU 80GB")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(_launch, "architecture", lambda x: "hopper")
    monkeypatch.setattr(_launch, "ATTENTION_TILES", copy.deepcopy(_launch.ATTENTION_TILES))
    monkeypatch.setattr(modules.measure, "copy_bandwidth", lambda: 1e12)
    for module in (modules.cases, modules.dit, modules.tiles, modules.small):
        monkeypatch.setattr(module, "noise", lambda *shape: torch.randn(shape))
    return modules


@pytest.fixture
def run_group(check, machine, monkeypatch, capsys):
    """Runs one group on the CPU as its process would, and gives the rows it prints."""
    group, kind = check

    def run(*descriptions, name="modulation", seconds=1e6):
        made = [case(kind, **description) for description in descriptions]
        monkeypatch.setitem(machine.cases.GROUPS, name, lambda: iter(made))
        assert group.run_group(name, seconds) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def wrong(r, x, g):
    return references.gated_residual(r, x, 2 * g, segments=SEGMENTS)


def test_a_group_times_what_agrees_and_only_that(run_group):
    rows = run_group(plain("good"), plain("bad", ours=wrong))
    assert [(row["op"], row["status"]) for row in rows] == [("good", "agrees"), ("good", "measured"), ("bad", "failed")]
    assert "seconds" not in rows[-1]


def test_a_part_of_the_real_size_can_fail_an_op(run_group):
    inputs = [torch.randn(1, 5, 16), torch.randn(1, 5, 16), torch.randn(1, 2, 16)]
    (row,) = run_group(plain("bad", part=lambda: (wrong, inputs)))
    assert row["status"] == "failed"
    rows = run_group(plain("good", part=lambda: (plain("")["ours"], inputs)))
    assert [row["status"] for row in rows] == ["agrees", "measured"]


def test_a_missing_peer_is_named_even_without_a_target(run_group):
    def broken(*args):
        raise RuntimeError("no such backend")

    row = run_group(plain("good", peers={"cudnn": broken}, targets={}))[-1]
    assert (row["status"], row["against"], row["problem"]) == ("skipped", "cudnn", "RuntimeError: no such backend")


def test_a_peer_with_a_target_that_is_missing_is_skipped_by_name(run_group, modules):
    import cases

    def missing(*args):
        raise cases.NotInstalled("diffusers not installed")

    targets = {("forward", "diffusers default"): (1.3, 1.9)}
    row = run_group(plain("dit_forward", peers={"diffusers default": missing}, targets=targets))[-1]
    line = modules.report.describe(row)
    assert line == "dit_forward small forward against diffusers default: skipped (diffusers not installed)"


def test_out_of_time_is_said(run_group):
    (row,) = run_group(plain("good"), seconds=-1)
    assert (row["op"], row["status"], row["problem"]) == ("good", "skipped", "out of time")


@pytest.fixture
def whole_run(machine, monkeypatch, tmp_path):
    """Runs ``main`` with processes and a clock that are made up."""
    clock, seen = [0.0], []
    monkeypatch.setattr(machine.gpu_check.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(machine.gpu_check.signal, "signal", lambda *_: None)

    def run(process, *flags):
        def fake(command, *, seconds, log, silence):
            options = machine.gpu_check.parse(command[2:])
            seen.append(options.group)
            yield from process(options, seconds, clock)

        monkeypatch.setattr(machine.apart, "rows_of", fake)
        monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--results", str(tmp_path), *flags])
        status = machine.gpu_check.main()
        assert not list(tmp_path.glob("*.tmp"))
        return status, machine.report.read(tmp_path), clock[0], seen

    run.groups = machine.gpu_check.GROUPS
    return run


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


def test_results_that_cannot_be_written_leave_the_old_ones(modules, tmp_path, monkeypatch):
    target = tmp_path / "x.jsonl"
    target.write_text("old")
    monkeypatch.setattr(Path, "write_text", lambda self, text: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        modules.report.replace_text(target, "new")
    assert target.read_text() == "old"


def test_every_row_of_the_goals_has_a_case(modules, monkeypatch):
    import cases

    meta_noise = functools.partial(torch.empty, device="meta")
    monkeypatch.setattr(cases, "noise", lambda *shape: meta_noise(shape))
    monkeypatch.setattr(cases, "packed_attention_cases", lambda: iter(()))
    made = [c for name, group in cases.GROUPS.items() if name != "packed_attention" for c in group()]
    targets = {(c.op, re.search(r"K=\d+|$", c.shape)[0], *key): least for c in made for key, least in c.targets.items()}
    assert targets["joint_attention", "K=128", "forward", "sdpa flash"] == (1.20, 1.60)
    assert targets["joint_attention", "K=128", "forward", "sdpa cudnn"] == (0.78, 0.97)
    assert targets["joint_attention", "K=64", "forward", "sdpa cudnn"] == (0.90, 1.05)
    assert targets["joint_attention", "K=128", "backward", "sdpa cudnn"] == (0.55, 0.95)
    for op in ("qk_norm_rope", "modulated_norm", "gated_residual", "residual_modulated_norm"):
        shape = "K=128" if op == "qk_norm_rope" else ""
        assert targets[op, shape, "forward", "copy"] == (0.75, 0.92)
        assert targets[op, shape, "backward", "copy"] == (0.60, 0.85)
    assert targets["qk_norm_rope", "K=128", "forward", "eager"] == (6, 10)
    assert targets["qk_norm_rope", "K=128", "forward", "compile"] == (1.05, 1.5)
    assert targets["frame_cross_attention", "K=128", "forward", "copy"] == (0.60, 0.85)
    assert targets["frame_cross_attention", "K=128", "backward", "copy"] == (0.60, 0.85)
    assert targets["dit_forward", "", "forward", "diffusers default"] == (1.3, 1.9)
    assert targets["dit_forward", "", "forward", "diffusers best"] == (1.0, 1.2)
    assert {*cases.GROUPS, "agreement", "tiles"} == set(modules.gpu_check.GROUPS)


def test_some_queries_among_all_agree(check, monkeypatch):
    group, _ = check
    import cases

    monkeypatch.setattr(cases, "noise", torch.randn)
    case = next(c for c in cases.attention_cases() if c.part is not None)
    function, given = case.part.func, (70, 2, 16)
    good = replace(case, part=functools.partial(function, *given))
    assert group.compare_part(good, torch.float32) == ""

    def shifted():
        ours, inputs = function(*given)
        return lambda q, k, v: ours(q, k, v).roll(1, dims=1), inputs

    assert "tensor 0" in group.compare_part(replace(case, part=shifted), torch.float32)


@pytest.fixture
def dit(check, monkeypatch):
    import dit

    monkeypatch.setattr(dit, "noise", torch.randn)

    toy = {"hidden_size": 32, "num_heads": 2, "rope_dims": (4, 6, 6), "text_dim": 12, "pooled_dim": 10}
    monkeypatch.setattr(dit, "CONFIG", replace(dit.CONFIG, **toy))
    monkeypatch.setattr(dit, "LATENTS", (1, 16, 2, 4, 6))
    monkeypatch.setattr(dit, "SMALL_LATENTS", (1, 16, 2, 4, 6))
    monkeypatch.setattr(dit, "WORDS", 5)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: None)
    (case,) = dit.dit_cases()
    return case


def test_the_model_with_kernels_is_the_model_without(check, dit):
    assert check[0].compare(dit, dit.small, torch.float32) == ""


@pytest.mark.parametrize("kind", ["eager", "triton"])
def test_attention_over_the_whole_sequence_gets_no_mask(dit, monkeypatch, kind):
    """What no padding needs would take the slower kernels, and only for ours."""
    import dit as module

    model, masks = module.own_model(kind, torch.float32), []

    def seen(q, k, v, *, mask=None):
        masks.append(mask)
        return references.attention(q, k, v, mask)

    for block in [*model.double_blocks, *model.single_blocks]:
        monkeypatch.setattr(block, "ops", replace(block.ops, attention=seen))
    (latents,) = dit.small()
    module.own(latents, kind)
    assert masks == [None, None]


def test_diffusers_is_a_peer_where_it_is_installed(check, dit):
    pytest.importorskip("diffusers")
    row = check[0].measure(dit, "forward", 1e12)
    assert row["refused"] == {}
    assert [t["against"] for t in row["targets"]] == ["diffusers default", "diffusers best"]


@pytest.mark.parametrize("best", [False, True])
def test_diffusers_computes_what_we_do(dit, monkeypatch, best):
    """In float32, so that a step left out on either side shows."""
    pytest.importorskip("diffusers")
    import dit as module

    monkeypatch.setattr(module, "public_model", lambda best, make=module.public_model: make(best).float())
    (latents,) = dit.make()
    mine = module.own(latents, "eager")
    torch.testing.assert_close(module.public(latents, best), mine, rtol=1e-4, atol=1e-5)


def test_without_diffusers_the_model_is_still_measured(check, dit, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    row = check[0].measure(dit, "forward", 1e12)
    assert set(row["peers"]) == {"plain torch"}
    assert row["refused"] == dict.fromkeys(["diffusers default", "diffusers best"], "diffusers not installed")


KERNELS = [
    f"{kind} {width}" for width in (128, 64) for kind in _launch.ATTENTION_TILES
    if width in _launch.ATTENTION_TILES[kind]["hopper"]
]  # fmt: skip


@pytest.fixture
def tiles(machine, monkeypatch):
    for name, value in {"BATCH": 1, "LENGTH": 37, "HEADS": 1, "HEAD_DIMS": (128, 64)}.items():
        monkeypatch.setattr(machine.tiles, name, value)
    # The interpreter cuts bfloat16 off.
    error_of = machine.tiles.error_of
    monkeypatch.setattr(machine.tiles, "error_of", lambda kind, width, tile: error_of(kind, width, tile, torch.float16))
    return machine.tiles


def test_every_kernel_of_attention_is_checked_alone(tiles, monkeypatch):
    assert tiles.kernels() == KERNELS
    assert {"forward 128", "backward_q 128", "backward_kv 128", "backward 64"} <= set(KERNELS)
    seen = {}
    launch = joint.launch

    def watch(kernel, grid, tensor, *args, **options):
        if "BLOCK_M" in options:
            seen.setdefault((kernel.fn.__name__, options.get("WITH_DQ", False)), options["TMA"])
        launch(kernel, grid, tensor, *args, **options)

    monkeypatch.setattr(joint, "launch", watch)
    names = {
        "forward": ("forward_kernel", False),
        "backward_q": ("backward_q_kernel", False),
        "backward_kv": ("backward_kernel", False),
        "backward": ("backward_kernel", True),
    }
    before = copy.deepcopy(_launch.ATTENTION_TILES)
    for kernel in ("forward 128", "backward_q 64", "backward_kv 128", "backward 64"):
        seen.clear()
        assert [row["status"] for row in tiles.check([kernel])] == ["begins", "agrees"]
        # Only it has the tile of the table, which loads through descriptors; the others have plain ones.
        assert [name for name, tma in seen.items() if tma] == [names[kernel.split()[0]]]
    assert before == _launch.ATTENTION_TILES


def pointed(kernel, args, name):
    """The tensor that a kernel gets under a name."""
    return args[list(inspect.signature(kernel.fn).parameters).index(name)]


def test_the_canary_ends_at_a_wrong_kernel(tiles, monkeypatch):
    launch = joint.launch

    def spoil(kernel, grid, tensor, *args, **options):
        launch(kernel, grid, tensor, *args, **options)
        if options.get("TMA") and kernel.fn.__name__ == "backward_q_kernel":
            # The last row of one tile.
            pointed(kernel, args, "dq_ptr")[:, 36] *= 0.5

    monkeypatch.setattr(joint, "launch", spoil)
    rows = list(tiles.check(["forward 64", "backward_kv 64", "backward_q 64", "backward 64"]))
    assert [row["status"] for row in rows] == ["begins", "agrees", "begins", "agrees", "begins", "failed"]
    assert "relative error" in rows[-1]["problem"]


def test_the_first_tile_that_agrees_goes_to_the_groups(whole_run, tiles):
    """The table's forward hangs at head dim 128, the next one is wrong, and no tile for dk and dv agrees at 64."""
    given = {}

    def process(options, seconds, clock):
        tiles_given = json.loads(options.tiles)
        given[options.group] = tiles_given
        clock[0] += 5
        for kernel in options.kernels or ():
            row = {"op": "joint_attention", "kernel": kernel, "tile": tiles_given.get(kernel)}
            yield {**row, "status": "begins"}
            if kernel == "forward 128" and kernel not in tiles_given:
                yield {"status": "failed", "problem": "hung"}
                return
            if (kernel == "forward 128" and row["tile"]["num_stages"] == 2) or kernel == "backward_kv 64":
                yield {**row, "status": "failed", "problem": "relative error 1"}
                return
            yield {**row, "status": "agrees"}

    status, rows, *_ = whole_run(process, "--groups", "attention,dit")
    first, plain = tiles.ALTERNATIVES["forward"][1], tiles.plain("backward_kv", 64)
    chosen = {"forward 128": asdict(first), "backward_kv 64": asdict(plain)}
    assert given["attention"] == given["dit"] == chosen
    assert status == 1
    hung = next(row for row in rows if row["problem"] == "hung")
    assert (hung["op"], hung["kernel"]) == ("joint_attention", "forward 128")
    agreed = {row["kernel"] for row in rows if row["status"] == "agrees"}
    assert agreed == {*KERNELS} - {"backward_kv 64"}


def test_a_group_runs_with_the_tiles_that_were_chosen(tiles):
    (tile, *_) = tiles.ALTERNATIVES["forward"]
    tiles.use({"forward 128": asdict(tile), "backward 64": None})
    assert _launch.attention_tile("forward", torch.empty(1, 128, dtype=torch.bfloat16)) == tile
    assert not _launch.one_pass(torch.empty(1, 64, dtype=torch.bfloat16))


@pytest.mark.parametrize("kind", ["forward", "backward", "backward_kv", "backward_q"])
def test_a_tile_is_tried_next_to_the_table_which_stays(check, tiles, monkeypatch, kind):
    monkeypatch.setattr(tiles, "noise", short_noise)
    before = copy.deepcopy(_launch.ATTENTION_TILES)
    row = tiles.try_tile(kind, tiles.ALTERNATIVES[kind][-1])
    assert row["status"] == "alternative", row
    assert row["tile"]["block_m"] == tiles.ALTERNATIVES[kind][-1].block_m
    assert "table_seconds" in row
    assert before == _launch.ATTENTION_TILES


def short_noise(*shape):
    """Long sequences become short ones, in a precision that the interpreter can."""
    x = torch.randn(*(37 if n == 16384 else 2 if n == 24 else n for n in shape))
    x.bfloat16 = x.half
    return x


@pytest.mark.parametrize("spoiled", ["tile", "table"])
def test_a_tile_that_is_wrong_is_not_timed(check, tiles, monkeypatch, spoiled):
    """Wrong by a fiftieth of its norm: far less than a tolerance for single numbers of this size would find."""
    monkeypatch.setattr(tiles, "noise", short_noise)
    tile = tiles.ALTERNATIVES["forward"][-1]
    launch = joint.launch

    def spoil(kernel, grid, tensor, *args, **options):
        launch(kernel, grid, tensor, *args, **options)
        if options["TMA"] and (options["BLOCK_N"] == tile.block_n) == (spoiled == "tile"):
            pointed(kernel, args, "out_ptr").mul_(1.02)

    monkeypatch.setattr(joint, "launch", spoil)
    row = tiles.try_tile("forward", tile)
    if spoiled == "tile":
        assert row["status"] == "alternative failed"
        assert "relative error" in row["problem"]
    else:
        assert row["status"] == "alternative"
        assert "table_seconds" not in row


def test_other_tiles_are_tried_whatever_attention_does(check, tiles, monkeypatch, capsys):
    monkeypatch.setattr(tiles, "try_tile", lambda kind, tile: {"status": "alternative", "of": [kind, tile.num_warps]})
    assert check[0].run_group("tiles", 100) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    meant = [
        [kind, tile.num_warps]
        for kind, others in tiles.ALTERNATIVES.items()
        for tile in others
        if tile != _launch.ATTENTION_TILES[kind]["hopper"].get(128)
    ]
    assert [row["of"] for row in rows] == meant
    assert meant[0][0] == "backward_kv"


def test_documents_have_the_measurements_and_only_those(check):
    """The tables of the documentation in the checkout are made of its results: empty where nobody measured."""
    import tables

    results = [
        json.loads(line)
        for path in sorted((FOLDER.parent / "results").glob("kernels_*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    for document in tables.DOCUMENTS:
        assert tables.fill(document.read_text(), results) == document.read_text(), document


def test_documents_say_how_to_read_every_group_and_result(modules):
    text = (FOLDER.parents[1] / "docs/kernels.md").read_text()
    section = text.split("## Check on a GPU")[1].split("\n## ")[0]
    source = "".join(path.read_text() for path in FOLDER.glob("*.py"))
    statuses = set(re.findall(r'"status": "([a-z ]+)"', source)) - {"begins"}
    assert {"agrees", "measured", "failed", "skipped", "alternative", "alternative failed"} <= statuses
    for name in ("canary", *modules.gpu_check.GROUPS, *statuses):
        assert f"`{name}`" in section, name


def test_tables_are_filled_by_gpu_op_and_length(check):
    import tables

    def row(op, shape, direction, **more):
        given = {"device": "NVIDIA H100 80GB HBM3", "date": "2026-01-01", "status": "measured", "bound": "memory"}
        timed = {"seconds": 2e-3, "floor": 1e-3, "flops": 1e12, "peers": {"eager": 8e-3, "compile": 3e-3}}
        return {"op": op, "shape": shape, "direction": direction, **given, **timed, **more}

    peers = {"sdpa flash": 3e-3, "sdpa cudnn": 1e-3}
    rows = [
        row("qk_norm_rope", "L=51736 N=24 K=128", "forward"),
        row("qk_norm_rope", "L=51736 N=24 K=128", "backward", device="Other GPU"),
        row("joint_attention", "L=8192 N=24 K=128", "forward", bound="matrix", peers=peers),
        {"op": "modulated_norm", "status": "failed", "problem": "tensor 0"},
    ]
    readme, docs = (tables.fill(document.read_text(), rows) for document in tables.DOCUMENTS)
    assert "| `qk_norm_rope` | forward | H100 | bf16 | 0.50 | 4.00 | 1.50 |" in readme
    assert "| `qk_norm_rope` | backward | H100 | bf16 | | | |" in readme
    assert "| `modulated_norm` | forward | H100 | bf16 | | | |" in readme
    assert "| `attention`, head dim 128 | forward | H100 | bf16 | 500 Tflop/s | | 0.50 |" in readme
    assert "| `attention`, head dim 64 | forward | H100 | bf16 | | | |" in readme
    assert "| H100 | 128 | 8,192 | forward | 1.03 | 2.00 | 1.50 | 0.50 |" in docs
    assert "| H100 | 128 | 51,736 | forward | 41.1 | | | |" in docs
    assert re.search(r"\| `qk_norm_rope` \|.*\| 0.433 \| 0.50 \| \|", docs)


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


SMALL = {"BATCH": 2, "LENGTH": 11, "KEYS": 9, "HEADS": 2, "WIDTH": 16, "SEGMENTS": (2, 5, 4), "DOCUMENTS": (5, 0, 8)}


@pytest.fixture
def small(machine, monkeypatch):
    for name, value in SMALL.items():
        monkeypatch.setattr(machine.small, name, value)
    monkeypatch.setattr(_launch, "architecture", lambda x: "interpreter")
    return machine.small


def test_every_op_agrees_in_small(small, monkeypatch):
    """In the ways that need no GPU; a batch, a key mask, weights by segment and documents among them."""
    monkeypatch.setattr(small, "WAYS", (("plain", small.plain, torch.float32, (16,)),))
    rows = list(small.agreement(float("inf")))
    assert [row for row in rows if row["status"] != "agrees"] == []
    names = {f"{row['op']} {row['shape']}" for row in rows}
    assert len(names) == len(rows) == 9
    assert {
        "joint_attention key mask K=16", "joint_attention B=2 K=16", "joint_attention_varlen K=16",
        "qk_norm_rope B=2 segments=(2, 5, 4) K=16", "rms_norm_silu B=2",
    } <= names  # fmt: skip


def test_small_shapes_find_an_op_that_forgets_the_mask_or_the_batch(small, monkeypatch):
    right = small.joint_attention
    monkeypatch.setattr(small, "joint_attention", lambda q, k, v, mask=None: right(q, k[:1].expand_as(k), v))
    monkeypatch.setattr(small, "ops", lambda head_dim, ops=small.ops: itertools.islice(ops(head_dim), 2))
    monkeypatch.setattr(small, "WAYS", (("plain", small.plain, torch.float32, (16,)),))
    assert [row["status"] for row in small.agreement(float("inf"))] == ["failed", "failed"]
    assert {row["status"] for row in small.agreement(-1.0)} == {"skipped"}


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
assert sys.modules["diffusers" if "diffusers" in sys.modules else "rich"] is None
sys.path[:0] = {[str(FOLDER.parents[1] / part) for part in ("", "kernels/src", "packages/omnihuman-core/src")]!r}
sys.path.insert(0, {str(FOLDER)!r})
import gpu_check, apart, cases, group, measure, dit, plot, report, small, tables, tiles
from tests.kernels.agreement import assert_agrees
assert {{*cases.GROUPS, "agreement", "tiles"}} == set(gpu_check.GROUPS)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
