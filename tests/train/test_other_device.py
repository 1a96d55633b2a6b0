"""The stages of training on a device that is not the CPU: no tensor, index or generator is left behind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from omnihuman_train.recipes import stage1, stage2, stage3
from omnihuman_train.stage_run import run_stage
from tests.other_device import other_device

from .stage_toys import toy, write_encoded


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
def test_three_stages_and_their_validation_run_on_another_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data, held = write_encoded(tmp_path / "data"), write_encoded(tmp_path / "held", first=8)

    def run(recipe: Any, start: Path | None, name: str, steps: int = 2) -> Path:
        config = toy(recipe, data, start)
        config = replace(
            config,
            stages=tuple(replace(stage, steps=steps) for stage in config.stages),
            run=replace(config.run, device=str(device), steps=steps),
            watch=replace(config.watch, validation_data=str(held), validation_batches=1, validation_every=2),
        )
        run_stage(config, tmp_path / name)
        return tmp_path / name / "model"

    with other_device(monkeypatch) as device:
        first = run(stage1.small(), None, "text")
        second = run(stage2.small(), first, "audio")
        run(stage3.small(), second, "pose")
        # Goes on from a checkpoint.
        run(stage3.small(), second, "pose", steps=3)
    rows = [json.loads(line) for line in (tmp_path / "pose" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["step"] for row in rows if "validation/loss" in row]
