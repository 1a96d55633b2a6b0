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


def last_row(out: Path) -> dict[str, float]:
    row = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    return {name: value for name, value in row.items() if name.startswith("validation")}


def test_stages_of_several_processes_are_those_of_one(tmp_path: Path, ranks: Server) -> None:
    data, held = str(write_encoded(tmp_path / "encoded")), str(write_encoded(tmp_path / "held", first=8))
    one, two, four = tmp_path / "one", tmp_path / "two", tmp_path / "four"
    assert ranks.run(1, "stage", out=str(one), data=data, held=held) == [""]
    assert ranks.run(2, "stage", out=str(two), data=data, held=held, sequence=2) == [""] * 2
    assert len(curve(one)) == 3
    assert curve(two) == pytest.approx(curve(one), abs=1e-5)
    assert (two / "validation" / "step_00000003_seed_0.mp4").is_file()
    # The next stage, with low-rank updates: from the model of one process and from that of two.
    start = str(one / "model")
    again = tmp_path / "again"
    assert ranks.run(1, "stage", out=str(again), data=data, start=start, held=held, rank=2) == [""]
    options = {"start": start, "held": held, "rank": 2, "sequence": 2, "dp_shard": 2}
    assert ranks.run(4, "stage", out=str(four), data=data, **options) == [""] * 4
    assert curve(four) == pytest.approx(curve(again), abs=1e-5)
    for mine, theirs in ((two, one), (four, again)):
        assert len(last_row(theirs)) >= 12
        assert last_row(mine) == pytest.approx(last_row(theirs), abs=1e-5)
    weights, wanted = (
        load_safetensors(folder / "model" / "backbone" / "model.safetensors") for folder in (four, again)
    )
    assert weights.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(weights[name].float(), value.float(), rtol=2e-2, atol=2e-3, msg=name)
