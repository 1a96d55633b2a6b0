"""Comparing runs: rows of metrics, weights, averages."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from omnihuman_core.checkpoint import load_safetensors

from .jobs import STEPS


def rows(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def distance(out: Path, other: Path, file: str = "model") -> float:
    """Relative distance of all weights together."""
    mine, theirs = (load_safetensors(path / f"{file}.safetensors") for path in (out, other))
    assert mine.keys() == theirs.keys()

    def norm(values: list[Tensor]) -> float:
        return float(torch.cat([value.flatten() for value in values]).norm())

    return norm([mine[key] - value for key, value in theirs.items()]) / norm(list(theirs.values()))


def check_equal(out: Path, reference: Path) -> None:
    """The bounds that a run in other processes has to keep: losses 1e-5, weights 1e-4."""
    mine, theirs = rows(out), rows(reference)
    assert [set(row) for row in mine] == [set(row) for row in theirs]
    assert [row["step"] for row in mine] == list(range(1, STEPS + 1))
    for row, wanted in zip(mine, theirs, strict=True):
        assert row == pytest.approx(wanted, abs=1e-5, rel=1e-5)
    assert distance(out, reference) < 1e-4
    assert distance(out, reference, "ema") < 1e-4
