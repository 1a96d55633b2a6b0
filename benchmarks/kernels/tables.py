"""Fill the measured cells of the documentation: ``python benchmarks/kernels/tables.py benchmarks/results``.

A cell without a measurement on its GPU becomes empty, so that no figure outlives the results it came from.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = (ROOT / "kernels/README.md", ROOT / "docs/kernels.md")
GPU = "H100"
Row = dict[str, Any]


def find(rows: list[Row], op: str, direction: str, shape: str = "", gpu: str = GPU) -> Row | None:
    """The measurement of an op, that of the longest sequence where there are several; the newest of equals."""
    found = [
        row
        for row in rows
        if row["status"] == "measured"
        and (row["op"], row["direction"]) == (op, direction)
        and gpu in row["device"]
        and set(shape.split()) <= set(row["shape"].split())
    ]
    return max(found, key=lambda row: (row["floor"], row["date"]), default=None)


def share(row: Row | None) -> str:
    return "" if row is None else f"{row['floor'] / row['seconds']:.2f}"


def times(row: Row | None, *peers: str) -> str:
    """How many times as fast as the first of ``peers`` that was timed."""
    timed = [row["peers"][peer] / row["seconds"] for peer in peers if peer in row["peers"]] if row else []
    return f"{timed[0]:.2f}" if timed else ""


def speed(rows: list[Row], cells: list[str]) -> list[str]:
    """A row of the table of speeds: op, direction, GPU, dtype, then three measured cells."""
    op, direction, gpu = cells[:3]
    width = re.search(r"head dim (\d+)", op)
    name = "dit_forward" if op.startswith("DiT") else re.sub(r".*`(\w+)`.*", r"\1", op)
    name = "joint_attention" if name == "attention" else name
    row = find(rows, name, direction, f"K={width[1]}" if width else "", gpu)
    rate = share(row)
    if row is not None and row["bound"] == "matrix":
        rate = f"{row['flops'] / row['seconds'] / 1e12:.0f} Tflop/s"
    eager = times(row, "eager", "diffusers default")
    return [*cells[:4], rate, eager, times(row, "compile", "sdpa cudnn", "diffusers best")]


def shares(rows: list[Row], cells: list[str]) -> list[str]:
    """A row of the table of formulas, which ends in the shares of the floor, forward and backward."""
    name = cells[0].strip("`")
    return [*cells[:-2], *(share(find(rows, name, direction)) for direction in ("forward", "backward"))]


def attention(rows: list[Row], cells: list[str]) -> list[str]:
    """A row of the table of attention: GPU, head dim, tokens, direction, floor, then three measured cells."""
    gpu, width, tokens, direction = cells[:4]
    row = find(rows, "joint_attention", direction, f"L={tokens.replace(',', '')} K={width}", gpu)
    taken = "" if row is None else f"{row['seconds'] * 1e3:.2f}"
    return [*cells[:5], taken, times(row, "sdpa flash"), times(row, "sdpa cudnn")]


# By the first two columns of a table.
TABLES: dict[tuple[str, str], Callable[[list[Row], list[str]], list[str]]] = {
    ("op", "direction"): speed,
    ("op", "formula"): shares,
    ("attention", "head dim"): attention,
}


def fill(text: str, rows: list[Row]) -> str:
    """``text`` with the measured cells of its tables as ``rows`` have them."""
    lines, make = [], None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if not line.startswith("|"):
            make = None
        elif make is None:
            make = TABLES.get((cells[0], cells[1])) if len(cells) > 1 else None
        elif not line.startswith("|---"):
            line = "|" + "".join(f" {cell} |" if cell else " |" for cell in make(rows, cells))
        lines.append(line)
    return "\n".join(lines) + "\n"


def main(results: Path) -> None:
    rows = [
        json.loads(line) for path in sorted(results.glob("kernels_*.jsonl")) for line in path.read_text().splitlines()
    ]
    for document in DOCUMENTS:
        document.write_text(fill(document.read_text(), rows))
        print(document)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
