"""The benchmark's own logic, with a clock that needs no GPU and kernels in the interpreter."""

import contextlib
import functools
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from omnihuman_kernels import performance
from omnihuman_kernels.gated_residual import gated_residual
from tests.kernels import references

FOLDER = Path(__file__).parents[3] / "benchmarks/kernels"
SEGMENTS = (2, 3)


@pytest.fixture
def check(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import cases
    import gpu_check
    import measure

    monkeypatch.setattr(
        measure, "interleaved", lambda functions, seconds: {n: (f(), 1e-3)[1] for n, f in functions.items()}
    )
    monkeypatch.setattr(torch, "compile", lambda function: function)
    yield gpu_check, cases.Case
    for name in ("cases", "dit", "gpu_check", "measure", "plot", "tables"):
        sys.modules.pop(name, None)


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
    gpu_check, kind = check
    good = case(kind)
    # bfloat16 is cut off by the interpreter; float32 shows that the comparison itself works.
    assert gpu_check.compare(good, good.make, torch.float32) == ""
    wrong = case(kind, ours=lambda r, x, g: gated_residual(r, x, g * 1.1, segments=SEGMENTS))
    assert "tensor" in gpu_check.compare(wrong, wrong.make, torch.float32)


def test_q_and_k_are_measured_and_compared_as_slices_of_the_projection(check, monkeypatch):
    gpu_check, _ = check
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
    assert gpu_check.compare(described, described.make) == ""
    for direction in ("forward", "backward"):
        gpu_check.measure(described, direction, 1e12)
    assert len(seen) >= 3
    assert set(seen) == {(packed, packed)}


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_row_holds_the_floor_and_the_targets(check, direction):
    gpu_check, kind = check
    row = gpu_check.measure(case(kind), direction, copy=1e6)
    assert row["floor"] == pytest.approx(3 * 5 * 16 * 2 / 1e6)
    assert set(row["peers"]) == {"eager", "compile"}
    assert [t["against"] for t in row["targets"]] == (["copy", "eager"] if direction == "forward" else [])
    line = gpu_check.describe({"op": "x", "shape": "y", "status": "measured", **row})
    assert ("MISSED" in line) == (direction == "forward")


def test_a_peer_that_cannot_run_is_noted(check):
    def broken(*args):
        raise RuntimeError("no such backend")

    gpu_check, kind = check
    row = gpu_check.measure(case(kind, eager=None, peers={"cudnn": broken}), "forward", copy=1e6)
    assert row["refused"] == {"cudnn": "RuntimeError: no such backend"}


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_compiled_peers_keep_what_the_next_backward_needs(check, direction):
    """Compiled code reuses the memory of what it saved, and refuses a second backward, unless it is told not to."""
    import torch._functorch.config as settings

    gpu_check, kind = check
    seen = []

    def compiled(*inputs):
        seen.append(settings.donated_buffer)
        return references.gated_residual(*inputs, segments=SEGMENTS)

    with settings.patch(donated_buffer=True):
        gpu_check.measure(case(kind, compiled=compiled), direction, copy=1e6)
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


def test_a_red_op_shows_no_speed(check, tmp_path, monkeypatch):
    gpu_check, kind = check
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU 80GB")
    row = {"op": "x", "shape": "y", **gpu_check.measure(case(kind), "forward", copy=1e6), "status": "measured"}
    red = {"op": "bad", "shape": "y", "status": "failed", "problem": "tensor 0: error 3"}
    gpu_check.write([row, red], tmp_path)
    (table,) = tmp_path.glob("kernels_some-gpu-80gb_*.md")
    text = table.read_text()
    assert "| x | y | forward |" in text
    assert "- bad y: failed: tensor 0: error 3" in text
    assert "| bad" not in text
    (lines,) = tmp_path.glob("*.jsonl")
    assert [json.loads(line)["op"] for line in lines.read_text().splitlines()] == ["x", "bad"]


def test_the_plot_marks_every_measured_op(check):
    gpu_check, kind = check
    import plot

    row = {
        "op": "a<b",
        "shape": "y",
        "device": "G",
        "status": "measured",
        **gpu_check.measure(case(kind), "forward", 1e12),
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
def run_group(check, monkeypatch, capsys):
    """Runs one group on the CPU as its process would, and gives the rows it prints."""
    gpu_check, kind = check
    import cases
    import measure

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU 80GB")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(measure, "copy_bandwidth", lambda: 1e12)
    monkeypatch.setattr(cases, "noise", torch.randn)
    monkeypatch.setattr(
        gpu_check, "try_tile", lambda kind, tile: {"status": "alternative", "kind": kind, "seconds": 1.0}
    )

    def run(*descriptions, group="modulation", seconds=1e6):
        made = [case(kind, **description) for description in descriptions]
        monkeypatch.setitem(cases.GROUPS, group, lambda: iter(made))
        assert gpu_check.run_group(group, seconds) == 0
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


@pytest.mark.parametrize(("ours", "tiles"), [(None, True), (wrong, False)])
def test_no_tile_of_a_red_attention_is_timed(run_group, ours, tiles):
    description = plain("joint_attention", **({} if ours is None else {"ours": ours}))
    rows = run_group(description, group="attention")
    assert any(row["status"] == "alternative" for row in rows) == tiles
    assert any("seconds" in row for row in rows) == tiles


def test_a_missing_peer_is_named_even_without_a_target(run_group):
    def broken(*args):
        raise RuntimeError("no such backend")

    row = run_group(plain("good", peers={"cudnn": broken}, targets={}))[-1]
    assert (row["status"], row["against"], row["problem"]) == ("skipped", "cudnn", "RuntimeError: no such backend")


def test_a_peer_with_a_target_that_is_missing_is_skipped_by_name(run_group, check):
    import cases

    def missing(*args):
        raise cases.NotInstalled("diffusers not installed")

    targets = {("forward", "diffusers default"): (1.3, 1.9)}
    row = run_group(plain("dit_forward", peers={"diffusers default": missing}, targets=targets))[-1]
    line = check[0].describe(row)
    assert line == "dit_forward small forward against diffusers default: skipped (diffusers not installed)"


def test_out_of_time_is_said(run_group):
    (row,) = run_group(plain("good"), seconds=-1)
    assert (row["op"], row["status"], row["problem"]) == ("good", "skipped", "out of time")


@pytest.fixture
def whole_run(check, monkeypatch, tmp_path, capsys):
    """Runs ``main`` on a machine and with a clock that are made up."""
    gpu_check, _ = check
    clock = [0.0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU 80GB")
    monkeypatch.setattr(gpu_check.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--results", str(tmp_path)])
    seen = []

    def run(process):
        def fake(command, *, timeout, **options):
            group = command[command.index("--group") + 1]
            seen.append(group)
            return process(group, timeout, clock)

        monkeypatch.setattr(subprocess, "run", fake)
        status = gpu_check.main()
        rows = [json.loads(line) for path in tmp_path.glob("*.jsonl") for line in path.read_text().splitlines()]
        assert not list(tmp_path.glob("*.tmp"))
        return status, rows, clock[0], seen

    run.gpu_check = gpu_check
    return run


def test_a_run_where_every_group_hangs_ends_within_nine_minutes(whole_run):
    def hang(group, timeout, clock):
        clock[0] += timeout
        half = json.dumps({"op": group, "status": "agrees"}) + '\n{"op": "cut'
        raise subprocess.TimeoutExpired(group, timeout, output=half.encode())

    status, rows, seconds, _ = whole_run(hang)
    assert status == 1
    assert seconds < 9 * 60
    assert {row["op"] for row in rows} == set(whole_run.gpu_check.GROUPS)
    assert {row["status"] for row in rows} == {"agrees", "failed", "skipped"}


def test_a_good_run_and_a_crash(whole_run):
    def work(group, timeout, clock):
        clock[0] += 10
        row = json.dumps({"op": group, "status": "agrees"}) + "\n"
        crashed = group == "packed_attention"
        return subprocess.CompletedProcess([], int(crashed), row, "Traceback\nCUDA error: misaligned address\n")

    status, rows, _, seen = whole_run(work)
    assert (status, tuple(seen)) == (1, whole_run.gpu_check.GROUPS)
    (problem,) = [row["problem"] for row in rows if row["status"] == "failed"]
    assert problem == "CUDA error: misaligned address"


def test_results_that_cannot_be_written_leave_the_old_ones(check, tmp_path, monkeypatch):
    gpu_check, _ = check
    target = tmp_path / "x.jsonl"
    target.write_text("old")
    monkeypatch.setattr(Path, "write_text", lambda self, text: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        gpu_check.replace_text(target, "new")
    assert target.read_text() == "old"


def test_every_row_of_the_goals_has_a_case(check, monkeypatch):
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
    assert set(cases.GROUPS) == set(check[0].GROUPS)


def test_some_queries_among_all_agree(check, monkeypatch):
    gpu_check, _ = check
    import cases

    monkeypatch.setattr(cases, "noise", torch.randn)
    case = next(c for c in cases.attention_cases() if c.part is not None)
    function, given = case.part.func, (70, 2, 16)
    good = replace(case, part=functools.partial(function, *given))
    assert gpu_check.compare_part(good, torch.float32) == ""

    def shifted():
        ours, inputs = function(*given)
        return lambda q, k, v: ours(q, k, v).roll(1, dims=1), inputs

    assert "tensor 0" in gpu_check.compare_part(replace(case, part=shifted), torch.float32)


@pytest.fixture
def dit(check, monkeypatch):
    import cases

    monkeypatch.setattr(cases, "noise", torch.randn)
    import dit

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


@pytest.mark.parametrize("kind", ["forward", "backward", "backward_kv", "backward_q"])
def test_a_tile_is_tried_next_to_the_table_which_stays(check, monkeypatch, kind):
    gpu_check, _ = check
    import cases

    from omnihuman_kernels import _launch

    monkeypatch.setattr(cases, "noise", lambda *shape: torch.randn(3, 1, 5, 1, 16))
    before = {name: dict(rows["hopper"]) for name, rows in _launch.ATTENTION_TILES.items() if "hopper" in rows}
    row = gpu_check.try_tile(kind, cases.ALTERNATIVES[kind][0])
    assert row["status"] == "alternative", row
    assert row["tile"]["block_m"] == cases.ALTERNATIVES[kind][0].block_m
    assert before == {name: dict(rows["hopper"]) for name, rows in _launch.ATTENTION_TILES.items() if "hopper" in rows}


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


def test_a_whole_run_on_a_gpu_that_is_made_up(whole_run, check, monkeypatch):
    """From ``main`` to the files, every group in this process; one op of one group is wrong."""
    gpu_check, kind = check
    import cases
    import measure

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(measure, "copy_bandwidth", lambda: 1e12)
    monkeypatch.setattr(gpu_check, "try_tile", lambda kind, tile: {"status": "alternative failed", "problem": "none"})
    for name in cases.GROUPS:
        made = [plain(f"{name}_good"), plain(f"{name}_bad", ours=wrong)] if name == "modulation" else [plain(name)]
        monkeypatch.setitem(cases.GROUPS, name, lambda made=made: (case(kind, **one) for one in made))
    compare = gpu_check.compare
    monkeypatch.setattr(gpu_check, "compare", lambda case, make: compare(case, make, torch.float32))

    def in_this_process(group, timeout, clock):
        clock[0] += 5
        with contextlib.redirect_stdout(io.StringIO()) as output:
            status = gpu_check.run_group(group, timeout)
        return subprocess.CompletedProcess([], status, output.getvalue(), "")

    status, rows, _, seen = whole_run(in_this_process)
    assert (status, tuple(seen)) == (1, gpu_check.GROUPS)
    measured = [row["op"] for row in rows if row["status"] == "measured"]
    assert measured == [f"{name}_good" if name == "modulation" else name for name in gpu_check.GROUPS]
    assert [row["op"] for row in rows if row["status"] == "failed"] == ["modulation_bad"]
    assert {"device", "torch", "triton", "date", "seconds", "floor", "peers", "targets"} <= set(
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
assert sys.modules["diffusers" if "diffusers" in sys.modules else "rich"] is None
sys.path[:0] = {[str(FOLDER.parents[1] / part) for part in ("", "kernels/src", "packages/omnihuman-core/src")]!r}
sys.path.insert(0, {str(FOLDER)!r})
import gpu_check, cases, measure, dit, plot, tables
from tests.kernels.agreement import assert_agrees
assert set(cases.GROUPS) == set(gpu_check.GROUPS)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
