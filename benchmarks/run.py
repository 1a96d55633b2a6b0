"""``make bench``: measure the shipped small model on held-out characters and print every figure beside its goal.

    python benchmarks/run.py [--model tiny|DIR] [--measures vae,lips,...] [--count 40] [--save]

``--save`` writes ``benchmarks/results/small_model_<hardware>_<YYYYMM>.{md,jsonl}``; measures may be run one by one. The
figures of the shipped model go into the README and the model card as well.
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
from small_model.summary import write_figures

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
    """Write the rows as Markdown and JSON lines; rows of measures that were not run now stay as they are."""
    index = pipeline.components.index
    cpu = pipeline.device.type == "cpu"
    device = platform.machine() if cpu else torch.cuda.get_device_name().replace(" ", "-").lower()
    facts = {
        "model": f"{index.name} {index.version}",
        "hardware": f"{device}, {torch.get_num_threads()} threads" if cpu else device,
        "torch": torch.__version__,
        "count": arguments.count,
        "command": "python benchmarks/run.py " + " ".join(sys.argv[1:]),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"small_model_{'cpu' if cpu else device}_{datetime.now(UTC):%Y%m}"
    lines = path.with_suffix(".jsonl")
    kept = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    ran = {row["measure"] for row in table}
    every = [row for row in kept if row["measure"] not in ran] + [{**facts, **row} for row in table]
    lines.write_text("".join(json.dumps(row) + "\n" for row in every))
    path.with_suffix(".md").write_text(as_markdown(every))
    if arguments.model == "tiny" and cpu:
        write_figures(every)


def as_markdown(every: list[dict[str, object]]) -> str:
    """The rows for a reader, with the commands that made them."""
    columns = ("measure", "number", "value", "goal", "met")
    text = "# The small model on held-out characters and voices\n\n"
    text += "".join(f"- `{command}`\n" for command in dict.fromkeys(row["command"] for row in every))
    text += "\n| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|\n"
    return text + "".join("| " + " | ".join(str(row[c]) for c in columns) + " |\n" for row in every)


if __name__ == "__main__":
    sys.exit(main())
