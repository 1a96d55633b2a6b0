"""``make bench``: measure the shipped small model on held-out characters and print every figure beside its goal.

    python benchmarks/run.py [--model tiny|DIR] [--measures vae,lips,...] [--count 40] [--save]

``--save`` writes ``benchmarks/results/small_model_<hardware>_<YYYYMM>.{md,jsonl}``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from small_model.footprint import footprint
from small_model.measures import GOALS, MEASURES, Numbers

from omnihuman_infer import OmniHumanPipeline

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Run the measures asked for; returns 0 whether goals are met or not."""
    arguments = parse()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    console = Console()
    pipeline = OmniHumanPipeline.from_pretrained(arguments.model, device=arguments.device)
    results: dict[str, Numbers] = {}
    for name in arguments.measures.split(","):
        started = time.monotonic()
        results[name] = footprint(arguments.model) if name == "footprint" else MEASURES[name](pipeline, arguments.count)
        console.print(f"{name}: {time.monotonic() - started:.0f} s")
    table = rows(results)
    console.print(as_table(table))
    if arguments.save:
        save(table, pipeline, arguments)
    return 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = [*MEASURES, "footprint"]
    parser.add_argument("--model", default="tiny", help="shipped model or model directory")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--measures", default=",".join(known), help=f"out of {','.join(known)}")
    parser.add_argument("--count", type=int, default=40, help="held-out clips per measure")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    arguments = parser.parse_args()
    unknown = set(arguments.measures.split(",")) - set(known)
    if unknown:
        parser.error(f"--measures: unknown {sorted(unknown)}; known are {known}")
    return arguments


def rows(results: dict[str, Numbers]) -> list[dict[str, object]]:
    """One row per number, with its goal and whether it is met where there is one."""
    goals = {(measure, number): (kind, goal) for measure, number, kind, goal in GOALS}
    table: list[dict[str, object]] = []
    for measure, numbers in results.items():
        for number, value in numbers.items():
            kind, goal = goals.get((measure, number), ("", math.nan))
            met = {">=": value >= goal, "<=": value <= goal, "within": abs(value) <= goal}.get(kind)
            table.append(
                {
                    "measure": measure,
                    "number": number,
                    "value": round(value, 4),
                    "goal": f"{kind} {goal:g}" if kind else "",
                    "met": "" if met is None else ("yes" if met else "no"),
                }
            )
    return table


def as_table(table: list[dict[str, object]]) -> Table:
    """For the terminal."""
    shown = Table(title="small model, held-out characters and voices")
    for column in table[0]:
        shown.add_column(column)
    for row in table:
        shown.add_row(*map(str, row.values()))
    return shown


def save(table: list[dict[str, object]], pipeline: OmniHumanPipeline, arguments: argparse.Namespace) -> None:
    """Write the rows as Markdown and JSON lines."""
    index = pipeline.components.index
    hardware = "cpu" if pipeline.device.type == "cpu" else torch.cuda.get_device_name().replace(" ", "-").lower()
    stamp = datetime.now(UTC).strftime("%Y%m")
    facts = {
        "model": f"{index.name} {index.version}",
        "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads" if hardware == "cpu" else hardware,
        "torch": torch.__version__,
        "count": arguments.count,
        "command": "python benchmarks/run.py " + " ".join(sys.argv[1:]),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"small_model_{hardware}_{stamp}"
    path.with_suffix(".jsonl").write_text("".join(json.dumps({**facts, **row}) + "\n" for row in table))
    lines = ["# The small model on held-out characters and voices", ""]
    lines += [f"- {name}: `{value}`" for name, value in facts.items()]
    lines += ["", "| " + " | ".join(table[0]) + " |", "|---" * len(table[0]) + "|"]
    lines += ["| " + " | ".join(map(str, row.values())) + " |" for row in table]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
