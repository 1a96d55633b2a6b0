"""Check the kernels on a GPU at real sizes, then measure them, then write ``benchmarks/results/``.

    python benchmarks/kernels/gpu_check.py [--groups attention,modulation,...] [--minutes 8] [--results FOLDER]

Runs from a bare checkout with torch, triton, pytest, numpy and einops; diffusers is a peer where it is installed. Each
group of ops runs in a process of its own with a time limit, so that a crash or a hang costs its group alone. An op
whose comparison fails is reported and not timed. Exit status: 0 if every comparison passed, 1 if one failed, 2 without
a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
GROUPS = (
    "qk_norm_rope",
    "modulation",
    "frame_cross_attention",
    "attention",
    "dit",
    "packed_attention",
    "rms_norm_silu",
)

# Share of the time that a group may take, by its work.
WEIGHTS = {"attention": 4.0, "modulation": 2.0, "dit": 2.0}

# Seconds that a group may take beyond its share before it is stopped, and the least that are worth a start.
GRACE, LEAST = 20.0, 15.0
Row = dict[str, Any]


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
        return run_group(arguments.group, arguments.minutes * 60)
    deadline = time.monotonic() + arguments.minutes * 60
    rows: list[Row] = []
    left = list(arguments.groups)
    while left:
        group = left.pop(0)
        share = WEIGHTS.get(group, 1.0) / (WEIGHTS.get(group, 1.0) + sum(WEIGHTS.get(g, 1.0) for g in left))
        rows += run_apart(group, (deadline - time.monotonic()) * share)
    measured = [row for row in rows if row["status"] == "measured"]
    failed = [row for row in rows if row["status"] == "failed"]
    write(rows, arguments.results)
    print(f"{len(failed)} failed, {len(measured)} times measured, results in {arguments.results}")
    if measured:
        print(f"to fill the tables of the documentation: python benchmarks/kernels/tables.py {arguments.results}")
    return 1 if failed else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=lambda text: text.split(","), default=list(GROUPS))
    parser.add_argument("--minutes", type=float, default=8.0, help="limit of the whole run")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results")
    parser.add_argument("--group", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = set(arguments.groups) - set(GROUPS)
    if unknown:
        parser.error(f"--groups knows {', '.join(GROUPS)}; got {', '.join(sorted(unknown))}")
    return arguments


def run_apart(group: str, seconds: float) -> list[Row]:
    """Run one group in a process; a line of its output that starts with ``{`` is a row."""
    if seconds < LEAST:
        rows = [{"op": group, "status": "skipped", "problem": "out of time"}]
    else:
        rows = rows_of_process(group, seconds)
    for row in rows:
        print(describe(row), flush=True)
    return rows


def rows_of_process(group: str, seconds: float) -> list[Row]:
    command = [sys.executable, __file__, "--group", group, "--minutes", str(seconds / 60)]
    problem = ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + GRACE)
        output = done.stdout
        if done.returncode != 0:
            problem = (done.stderr.strip().splitlines() or ["crashed"])[-1]
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout or b""
        output = output.decode() if isinstance(output, bytes) else output
        problem = f"did not end within {seconds + GRACE:.0f} s"
    # A process that was stopped may have been in the middle of its last line.
    rows = [json.loads(line) for line in output.splitlines(keepends=True) if line[:1] == "{" and line[-2:] == "}\n"]
    if problem:
        rows.append({"op": group, "status": "failed", "problem": problem})
    return rows


def run_group(group: str, seconds: float) -> int:
    """Compare, then measure, the cases of one group; prints a row of JSON for each result."""
    from cases import ALTERNATIVES, GROUPS
    from measure import copy_bandwidth

    deadline = time.monotonic() + seconds
    torch.manual_seed(0)
    device = {"device": torch.cuda.get_device_name(), "capability": torch.cuda.get_device_capability()}
    device |= {
        "torch": torch.__version__,
        "triton": __import__("triton").__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }
    copy = copy_bandwidth()
    known: dict[str, str] = {}
    red: set[str] = set()
    for case in GROUPS[group]():
        base = {"op": case.op, "shape": case.shape, "dtype": "bfloat16", **device}
        if time.monotonic() > deadline:
            emit({**base, "status": "skipped", "problem": "out of time"})
            continue
        # Cases that differ in their length alone are compared once, at the length that float64 can hold.
        key = f"{case.op} {case.shape}" if case.small is None else case.shape.split()[-1]
        if key not in known:
            known[key] = compare(case, case.small or case.make)
        problem = known[key] or compare_part(case)
        if problem:
            red.add(case.op)
            emit({**base, "status": "failed", "problem": problem})
            continue
        emit({**base, "status": "agrees"})
        for direction in case.directions:
            if time.monotonic() > deadline:
                emit({**base, "status": "skipped", "direction": direction, "problem": "out of time"})
                continue
            try:
                row = measure(case, direction, copy)
                emit({**base, "status": "measured", **row})
                for peer, reason in row["refused"].items():
                    skipped = {"status": "skipped", "direction": direction, "against": peer, "problem": reason}
                    emit({**base, **skipped})
            except Exception as error:
                red.add(case.op)
                emit({**base, "status": "failed", "direction": direction, "problem": first_line(error)})
        torch.cuda.empty_cache()
    if group == "attention" and "joint_attention" not in red and device["capability"][0] == 9:
        for kind, tiles in ALTERNATIVES.items():
            for tile in tiles:
                if time.monotonic() < deadline:
                    emit({"op": "joint_attention", **device, **try_tile(kind, tile)})
    return 0


def compare(case: Any, make: Any, dtype: torch.dtype = torch.bfloat16) -> str:
    """An empty string if outputs and gradients agree with float64, else what does not."""
    inputs = make()
    keep = [x.float() for x in inputs[case.differentiable :]]

    def ours(*args: Any) -> object:
        return case.ours(*args, *keep)

    def reference(*args: Any) -> object:
        return case.reference(*args, *(x.to(args[0].dtype) for x in keep))

    return disagreement(ours, reference, inputs[: case.differentiable], dtype)


def compare_part(case: Any, dtype: torch.dtype = torch.bfloat16) -> str:
    """The same for a part of the real size, if the case has one."""
    if case.part is None:
        return ""
    try:
        ours, inputs = case.part()
    except Exception as error:
        return first_line(error)
    return disagreement(ours, case.reference, inputs, dtype)


def disagreement(ours: Any, reference: Any, inputs: list[torch.Tensor], dtype: torch.dtype) -> str:
    from tests.kernels.agreement import assert_agrees

    try:
        assert_agrees(ours, reference, inputs, dtype)
    except Exception as error:
        traceback.print_exc()
        return first_line(error)
    finally:
        torch.cuda.empty_cache()
    return ""


def measure(case: Any, direction: str, copy: float) -> Row:
    """Times of the op and its peers, its floor and the share of it that was reached."""
    import torch._functorch.config
    from measure import interleaved

    from omnihuman_kernels.performance import H100_SXM, Device

    inputs = [x.float() if i in case.keep else x.bfloat16() for i, x in enumerate(case.make())]
    candidates = {"ours": case.ours, **case.peers}
    if case.eager is not None:
        candidates |= {"eager": case.eager, "compile": torch.compile(case.compiled or case.eager)}
    ready, refused = {}, {}
    # One graph is differentiated again and again, which compiled code must know: it would reuse what it keeps.
    with torch._functorch.config.patch(donated_buffer=False):
        for name, function in candidates.items():
            try:
                ready[name] = prepare(function, inputs, case.differentiable, direction)
                ready[name]()
            except Exception as error:
                if name == "ours":
                    raise
                ready.pop(name, None)
                refused[name] = first_line(error)
    seconds = interleaved(ready, seconds=3.0)
    cost = case.cost[0 if direction == "forward" else 1]
    device = Device(name="this", matrix_flops=H100_SXM.matrix_flops, copy_bytes=copy)
    floor = cost.bytes / copy if case.bound == "memory" else cost.floor(device)
    row: Row = {
        "direction": direction,
        "bound": case.bound,
        "copy_bandwidth": copy,
        "seconds": seconds.pop("ours"),
        "peers": seconds,
        "refused": refused,
        "floor": floor,
        "bytes": cost.bytes,
        "flops": cost.flops,
    }
    row["targets"] = [
        {
            "against": peer,
            "must": must,
            "aim": aim,
            "ratio": floor / row["seconds"] if peer == "copy" else seconds[peer] / row["seconds"],
        }
        for (of, peer), (must, aim) in case.targets.items()
        if of == direction and (peer == "copy" or peer in seconds)
    ]
    return row


def prepare(function: Any, inputs: list[torch.Tensor], differentiable: int, direction: str) -> Any:
    """A call without arguments: the forward, or the backward of a graph that was built once."""
    if direction == "forward":

        def forward() -> object:
            with torch.no_grad():
                return function(*inputs)

        return forward
    leaves = [x.detach().requires_grad_(i < differentiable) for i, x in enumerate(inputs)]
    out = function(*leaves)
    outs = list(out) if isinstance(out, tuple) else [out]
    upstream = [torch.randn_like(y) for y in outs]
    return lambda: torch.autograd.grad(outs, leaves[:differentiable], upstream, retain_graph=True)


def try_tile(kind: str, tile: Any) -> Row:
    """Time an alternative tile next to the one in the table, after checking that it gives the same results."""
    from dataclasses import asdict

    from cases import noise
    from measure import interleaved

    from omnihuman_kernels import _launch
    from omnihuman_kernels.joint_attention import joint_attention

    # Without a row of its own a kind is not used: attention then goes backward in two passes.
    table = _launch.ATTENTION_TILES[kind]["hopper"]
    usual = table.get(128)
    direction = "forward" if kind == "forward" else "backward"
    row: Row = {
        "shape": "L=16384 N=24 K=128",
        "dtype": "bfloat16",
        "direction": direction,
        "kind": kind,
        "tile": asdict(tile),
    }
    inputs = [x.bfloat16() for x in noise(3, 1, 16384, 24, 128)]

    def with_tile(chosen: Any, call: Any) -> Any:
        def run() -> Any:
            table.pop(128, None)
            table.update({} if chosen is None else {128: chosen})
            try:
                return call()
            finally:
                table.pop(128, None)
                table.update({} if usual is None else {128: usual})

        return run

    try:
        call = prepare(joint_attention, inputs, 3, direction)
        ours, other = with_tile(usual, call), with_tile(tile, call)
        pairs = zip(*(x if isinstance(x, tuple) else (x,) for x in (ours(), other())), strict=True)
        for a, b in pairs:
            torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)
        seconds = interleaved({"table": ours, "tile": other}, seconds=2.0)
    except Exception as error:
        return {**row, "status": "alternative failed", "problem": first_line(error)}
    return {**row, "status": "alternative", "seconds": seconds["tile"], "table_seconds": seconds["table"]}


def emit(row: Row) -> None:
    print(json.dumps(row), flush=True)


def first_line(error: BaseException) -> str:
    if type(error).__name__ == "NotInstalled":
        return str(error)
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"


def describe(row: Row) -> str:
    """A line for people."""
    what = " ".join(str(row[key]) for key in ("op", "shape", "direction") if key in row)
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
        times = f"{row['seconds'] * 1e3:.3f} ms, table's {row['table_seconds'] * 1e3:.3f} ms"
        return f"{what} {row['kind']} tile {row['tile']}: {times}"
    return f"{what}: {row['status']}" + (f": {row['problem']}" if "problem" in row else "")


def describe_target(target: Row) -> str:
    missed = "" if target["ratio"] >= target["must"] else ", MISSED"
    return f"{target['ratio']:.2f}x {target['against']} (must {target['must']}, aim {target['aim']}{missed})"


def write(rows: list[Row], folder: Path) -> None:
    """Rows as JSON lines, and a table of the measured ones."""
    folder.mkdir(parents=True, exist_ok=True)
    hardware = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    stem = folder / f"kernels_{hardware}_{datetime.now(UTC):%Y%m}"
    replace_text(stem.with_suffix(".jsonl"), "".join(json.dumps(row) + "\n" for row in rows))
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
    problems = [f"- {describe(row)}" for row in rows if row["status"] in ("failed", "skipped", "alternative failed")]
    replace_text(stem.with_suffix(".md"), "\n".join([*lines, "", *problems]).rstrip() + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text)
    os.replace(unfinished, path)


if __name__ == "__main__":
    sys.exit(main())
