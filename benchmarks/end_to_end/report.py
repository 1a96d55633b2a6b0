"""What the comparisons have in common: measurements in turns, ratios, a table, and rows in `benchmarks/results/`."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def in_turns(
    ways: Mapping[str, Callable[[], object]], repeats: int, *, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Seconds of several functions, run one after the other ``repeats`` times.

    CPU seconds of the process, which other load on the machine changes little, unless another ``clock`` is given.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            started = clock()
            way()
            seconds[name].append(clock() - started)
    return seconds


def median(seconds: Sequence[float]) -> float:
    """Rounded for a table."""
    return round(statistics.median(seconds), 4)


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and most of the ratios of measurements that were taken one after the other."""
    pairs = [a / b for a, b in zip(numerators, denominators, strict=True)]
    return round(statistics.median(pairs), 3), round(min(pairs), 3), round(max(pairs), 3)


def show(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a table; the first tells the columns."""
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*("" if row.get(column) is None else str(row[column]) for column in rows[0]))
    Console().print(table)


def save(name: str, rows: Sequence[Mapping[str, Any]], *, key: Sequence[str] = ()) -> Path:
    """Write rows to ``benchmarks/results/{name}_cpu_YYYYMM.jsonl``, each with the command and the machine.

    Args:
        name: Of the benchmark.
        rows: What it measured.
        key: Columns by which a row takes the place of an earlier one; without any, all earlier rows go.

    Returns:
        The file.
    """
    facts = {
        "hardware": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "command": " ".join(["python", str(Path(sys.argv[0]).resolve().relative_to(ROOT)), *sys.argv[1:]]),
    }
    path = RESULTS / f"{name}_cpu_{datetime.now(UTC):%Y%m}.jsonl"
    old = [json.loads(line) for line in path.read_text().splitlines()] if key and path.exists() else []
    new = {tuple(row[column] for column in key) for row in rows}
    kept = [row for row in old if tuple(row[column] for column in key) not in new]
    RESULTS.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in [*kept, *({**facts, **row} for row in rows)]))
    return path
