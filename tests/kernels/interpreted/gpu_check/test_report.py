"""Rows for people, in files and in the plot."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from tests.kernels.interpreted.gpu_check.builders import case


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


def test_results_that_cannot_be_written_leave_the_old_ones(modules, tmp_path, monkeypatch):
    target = tmp_path / "x.jsonl"
    target.write_text("old")
    monkeypatch.setattr(Path, "write_text", lambda self, text: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        modules.report.replace_text(target, "new")
    assert target.read_text() == "old"


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
