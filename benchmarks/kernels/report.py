"""Rows of results for people, and in files that keep what was not run again."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]
PROBLEMS = ("failed", "skipped", "alternative failed")


def describe(row: Row) -> str:
    """A line for people."""
    ways = ("dtype", "way") if "way" in row else ()
    what = " ".join(str(row[key]) for key in ("op", "shape", *ways, "kernel", "direction") if key in row)
    if "against" in row:
        what += f" against {row['against']}"
    if row["status"] == "skipped":
        return f"{what}: skipped ({row['problem']})"
    if row["status"] == "measured":
        time_taken = f"{row['seconds'] * 1e3:.3f} ms, floor {row['floor'] * 1e3:.3f} ms"
        work, unit = (row["flops"] / 1e12, "Tflop/s") if row["bound"] == "matrix" else (row["bytes"] / 1e9, "GB/s")
        targets = [describe_target(target) for target in row["targets"]]
        return ", ".join([f"{what}: {time_taken}, {work / row['seconds']:.0f} {unit}", *targets])
    if row["status"] == "alternative":
        times = f"{row['seconds'] * 1e3:.3f} ms"
        if "table_seconds" in row:
            times += f", table's {row['table_seconds'] * 1e3:.3f} ms"
        return f"{what} {row['kind']} tile {describe_tile(row['tile'])}: {times}"
    if "tile" in row:
        what += f" tile {describe_tile(row['tile'])}"
    where = f" (more in {row['log']})" if "log" in row else ""
    return f"{what}: {row['status']}" + (f": {row['problem']}{where}" if "problem" in row else "")


def describe_tile(tile: Row | None) -> str:
    """Such as ``128x64, 4 warps, 2 stages, tma, warp_specialize``."""
    if tile is None:
        return "none"
    ways = [name for name in ("tma", "warp_specialize") if tile[name]]
    sizes = f"{tile['block_m']}x{tile['block_n']}"
    return ", ".join([sizes, f"{tile['num_warps']} warps", f"{tile['num_stages']} stages", *ways])


def describe_target(target: Row) -> str:
    missed = "" if target["ratio"] >= target["must"] else ", MISSED"
    return f"{target['ratio']:.2f}x {target['against']} (must {target['must']}, aim {target['aim']}{missed})"


def first_line(error: BaseException) -> str:
    if type(error).__name__ == "NotInstalled":
        return str(error)
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"


def hardware() -> str:
    """The GPU in names of files."""
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")


def results_file(folder: Path) -> Path:
    """Rows of this GPU and month, as lines of JSON."""
    return folder / f"kernels_{hardware()}_{datetime.now(UTC):%Y%m}.jsonl"


def log_file(folder: Path, group: str) -> Path:
    """What a group's process says beside its rows."""
    return folder / f"kernels_{hardware()}_{group}.log"


def read(folder: Path) -> list[Row]:
    """The rows of an earlier run, if there are any."""
    path = results_file(folder)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def merged(earlier: list[Row], rows: list[Row], running: str = "") -> list[Row]:
    """The new rows, after those earlier ones that nothing new is known about.

    Args:
        earlier: What the file had.
        rows: What this run found so far.
        running: A group that has not ended: of its earlier rows those of other ops and shapes stay.
    """
    known = {row["group"] for row in rows if row["status"] != "skipped"} - {running}
    seen = {(row["group"], row["op"], row.get("shape")) for row in rows if row["status"] != "skipped"}
    kept = [
        row
        for row in earlier
        if row["status"] != "skipped"
        and row["group"] not in known
        and (row["group"], row["op"], row.get("shape")) not in seen
    ]
    return kept + rows


def write(rows: list[Row], folder: Path) -> None:
    """Rows as JSON lines, and a table of the measured ones."""
    folder.mkdir(parents=True, exist_ok=True)
    path = results_file(folder)
    replace_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    lines = [
        f"# Kernels on {torch.cuda.get_device_name()}",
        "",
        "| op | shape | direction | ms | floor ms | share | times as fast as |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["status"] != "measured":
            continue
        peers = ", ".join(f"{name} {seconds / row['seconds']:.2f}x" for name, seconds in row["peers"].items())
        cells = [row["op"], row["shape"], row["direction"], f"{row['seconds'] * 1e3:.3f}", f"{row['floor'] * 1e3:.3f}"]
        lines.append("| " + " | ".join([*cells, f"{row['floor'] / row['seconds']:.0%}", peers]) + " |")
    problems = [f"- {describe(row)}" for row in rows if row["status"] in PROBLEMS]
    replace_text(path.with_suffix(".md"), "\n".join([*lines, "", *problems]).rstrip() + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text)
    os.replace(unfinished, path)
