"""The benchmark's own logic, with a clock that needs no GPU and kernels in the interpreter."""

import functools
import json
import sys
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
    for name in ("cases", "gpu_check", "measure", "plot"):
        sys.modules.pop(name, None)


def case(kind, **changes):
    options = {"segments": SEGMENTS}
    given = {
        "op": "gated_residual",
        "shape": "small",
        "make": lambda: [torch.randn(1, 5, 16), torch.randn(1, 5, 16), torch.randn(1, 2, 16)],
        "ours": functools.partial(gated_residual, **options),
        "reference": functools.partial(references.gated_residual, **options),
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
    row = gpu_check.measure(case(kind, eager=False, peers={"cudnn": broken}), "forward", copy=1e6)
    assert row["refused"] == {"cudnn": "RuntimeError: no such backend"}


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
