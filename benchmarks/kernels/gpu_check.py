"""Check the kernels on a GPU at real sizes, then measure them, then write ``benchmarks/results/``.

    python benchmarks/kernels/gpu_check.py [--groups attention,modulation,...] [--minutes 8] [--results FOLDER]

Runs from a bare checkout with torch, triton, pytest, numpy and einops; diffusers is a peer where it is installed. Each
group of ops runs in a process of its own with a time limit, so that a crash or a hang costs its group alone. Before
them each kernel of attention runs on a short sequence; where the table's tile is wrong or hangs, later groups take the
first other one that agrees. An op whose comparison fails is reported and not timed. Results are written as they come;
those of groups that were not run stay. Exit status: 0 if every comparison passed, 1 if one failed, 2 without a GPU,
130 if it was stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import sys
import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
GROUPS = (
    "agreement",
    "qk_norm_rope",
    "modulation",
    "frame_cross_attention",
    "attention",
    "dit",
    "tiles",
    "packed_attention",
    "rms_norm_silu",
)

# Groups that run joint attention.
ATTENTION = {"agreement", "attention", "dit", "tiles", "packed_attention"}

# Share of the time that a group may take, by its work: most of it is compiling, and agreement compiles most.
WEIGHTS = {"agreement": 4.0, "attention": 3.0, "modulation": 2.0, "dit": 3.0, "tiles": 2.0, "rms_norm_silu": 2.0}

# Share of the time within which attention's tiles are chosen, if they must be.
CANARY = 0.4

# Seconds that a group may take beyond its share before it is stopped, and the least that are worth a start.
GRACE, LEAST = 20.0, 15.0
Row = dict[str, Any]
Tiles = dict[str, Row | None]
Rows = Generator[Row, None, None]
Keep = Callable[[str, Rows], Rows]


def main() -> int:
    arguments = parse()
    if not torch.cuda.is_available():
        print("gpu-check needs a CUDA device and found none; nothing was checked or measured")
        return 2
    sys.path[:0] = [
        str(ROOT),
        str(ROOT / "kernels/src"),
        str(ROOT / "packages/omnihuman-core/src"),
        str(Path(__file__).parent),
    ]
    if arguments.group:
        import tiles
        from group import run_group

        tiles.use(json.loads(arguments.tiles))
        # The clock is that of the whole machine: what this process took to start counts.
        return run_group(arguments.group, arguments.until - time.monotonic(), arguments.kernels)
    # Whoever limits the time of this process gets the results so far, and no orphans on the GPU.
    signal.signal(signal.SIGTERM, interrupt)
    try:
        return run_all(arguments.groups, arguments.minutes * 60, arguments.results)
    except KeyboardInterrupt:
        print(f"stopped; results so far in {arguments.results}")
        return 130


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=lambda text: text.split(","), default=list(GROUPS))
    parser.add_argument("--minutes", type=float, default=8.0, help="limit of the whole run")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results")
    parser.add_argument("--group", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--kernels", type=lambda text: text.split(","), help=argparse.SUPPRESS)
    parser.add_argument("--tiles", default="{}", help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    unknown = set(arguments.groups) - set(GROUPS)
    if unknown:
        parser.error(f"--groups knows {', '.join(GROUPS)}; got {', '.join(sorted(unknown))}")
    return arguments


def run_all(groups: list[str], seconds: float, folder: Path) -> int:
    """Run the groups, each in a process; print rows and write the results as they come."""
    import report

    began = time.monotonic()
    earlier, rows = report.read(folder), list[Row]()

    def keep(group: str, found: Rows) -> Rows:
        with closing(found):
            for row in found:
                row |= {"group": group}
                if row["status"] != "begins":
                    rows.append(row)
                    print(report.describe(row), flush=True)
                    report.write(report.merged(earlier, rows, running=group), folder)
                yield row
        report.write(report.merged(earlier, rows), folder)

    chosen: Tiles = {}
    if ATTENTION & set(groups):
        chosen = choose_tiles(folder, began + CANARY * seconds, keep)
    left = list(groups)
    while left:
        group = left.pop(0)
        share = WEIGHTS.get(group, 1.0) / (WEIGHTS.get(group, 1.0) + sum(WEIGHTS.get(g, 1.0) for g in left))
        limit = (began + seconds - time.monotonic()) * share
        list(keep(group, run_apart(group, limit, report.log_file(folder, group), chosen)))
    measured = [row for row in rows if row["status"] == "measured"]
    failed = [row for row in rows if row["status"] == "failed"]
    print(f"{len(failed)} failed, {len(measured)} times measured, results in {folder}")
    if measured:
        print(f"to fill the tables of the documentation: python benchmarks/kernels/tables.py {folder}")
    return 1 if failed else 0


def choose_tiles(folder: Path, deadline: float, keep: Keep) -> Tiles:
    """Kernels of attention whose tile is wrong on this GPU, and the tile that takes its place."""
    import tiles
    from report import log_file

    attempts = itertools.count(1)

    def attempt(kernels: list[str], chosen: Tiles) -> Rows | None:
        limit = deadline - time.monotonic()
        if limit < LEAST:
            return None
        # A file for each process, or the next would write over what the last had to say.
        log = log_file(folder, f"canary_{next(attempts)}")
        found = run_apart("canary", limit, log, chosen, kernels=kernels, silence=tiles.SILENCE)
        return keep("canary", tiles.blamed(found))

    return tiles.choose(tiles.kernels(), attempt)


def run_apart(
    group: str,
    seconds: float,
    log: Path,
    chosen: Tiles,
    *,
    kernels: list[str] | None = None,
    silence: float | None = None,
) -> Rows:
    """Run one group in a process; a failure names the file with what the process had to say."""
    from apart import rows_of

    if seconds < LEAST:
        yield {"op": group, "status": "skipped", "problem": "out of time"}
        return
    command = [sys.executable, __file__, "--group", group, "--until", str(time.monotonic() + seconds)]
    command += ["--tiles", json.dumps(chosen)] if chosen else []
    command += ["--kernels", ",".join(kernels)] if kernels else []
    with closing(rows_of(command, seconds=seconds + GRACE, log=log, silence=silence)) as rows:
        for row in rows:
            if row["status"] in ("failed", "alternative failed"):
                row["log"] = log.name
            # A process that was stopped speaks of no op.
            yield {"op": group, **row}


if __name__ == "__main__":
    sys.exit(main())
