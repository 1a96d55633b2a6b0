"""Stages on an encoded data set in several processes: one stream, one curve, one exported model."""

import json
from pathlib import Path

import pytest
import torch

from omnihuman_core.checkpoint import load_safetensors
from tests.train.stage_toys import write_encoded

from .ranks import Server


def curve(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_stages_of_several_processes_are_those_of_one(tmp_path: Path, ranks: Server) -> None:
    data = str(write_encoded(tmp_path / "encoded"))
    one, two, four = tmp_path / "one", tmp_path / "two", tmp_path / "four"
    assert ranks.run(1, "stage", out=str(one), data=data) == [""]
    assert ranks.run(2, "stage", out=str(two), data=data, sequence=2) == [""] * 2
    assert len(curve(one)) == 3
    assert curve(two) == pytest.approx(curve(one), abs=1e-5)
    assert (two / "validation" / "step_00000003_seed_0.mp4").is_file()
    # The next stage, with low-rank updates: from the model of one process and from that of two.
    start = str(one / "model")
    again = tmp_path / "again"
    assert ranks.run(1, "stage", out=str(again), data=data, start=start, rank=2) == [""]
    assert ranks.run(4, "stage", out=str(four), data=data, start=start, rank=2, sequence=2, dp_shard=2) == [""] * 4
    assert curve(four) == pytest.approx(curve(again), abs=1e-5)
    mine, theirs = (load_safetensors(folder / "model" / "backbone" / "model.safetensors") for folder in (four, again))
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name].float(), value.float(), rtol=2e-2, atol=2e-3, msg=name)
