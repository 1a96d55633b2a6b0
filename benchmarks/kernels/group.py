"""What the process of one group does: compare its cases with float64, time them, and print a row for each result."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import torch
from report import first_line

Row = dict[str, Any]
OUT_OF_TIME = {"status": "skipped", "problem": "out of time"}


def run_group(group: str, seconds: float, kernels: list[str] | None = None) -> int:
    """Run one group and print a row of JSON for each result.

    Args:
        group: A group, or ``canary``.
        seconds: After this long what is left is skipped.
        kernels: Those that the canary checks.
    """
    deadline = time.monotonic() + seconds
    torch.manual_seed(0)
    device = {
        "device": torch.cuda.get_device_name(),
        "capability": torch.cuda.get_device_capability(),
        "torch": torch.__version__,
        "triton": __import__("triton").__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }
    if group == "canary":
        from tiles import check

        found = check(kernels or [])
    elif group == "agreement":
        from small import agreement

        found = agreement(deadline)
    elif group == "tiles":
        found = try_tiles(deadline)
    else:
        from cases import GROUPS

        found = run_cases(GROUPS[group](), deadline)
    for row in found:
        print(json.dumps(device | row), flush=True)
    return 0


def run_cases(cases: Iterable[Any], deadline: float) -> Iterator[Row]:
    """Compare, then measure, the cases of one group."""
    from measure import copy_bandwidth

    copy = copy_bandwidth()
    known: dict[str, str] = {}
    for case in cases:
        base = {"op": case.op, "shape": case.shape, "dtype": "bfloat16"}
        if time.monotonic() > deadline:
            yield base | OUT_OF_TIME
            continue
        # Cases that differ in their length alone are compared once, at the length that float64 can hold.
        key = f"{case.op} {case.shape}" if case.small is None else case.shape.split()[-1]
        if key not in known:
            known[key] = compare(case, case.small or case.make)
        problem = known[key] or compare_part(case)
        if problem:
            yield {**base, "status": "failed", "problem": problem}
            continue
        yield {**base, "status": "agrees"}
        for direction in case.directions:
            if time.monotonic() > deadline:
                yield {**base, "direction": direction, **OUT_OF_TIME}
                continue
            try:
                row = measure(case, direction, copy)
            except Exception as error:
                traceback.print_exc()
                yield {**base, "status": "failed", "direction": direction, "problem": first_line(error)}
                continue
            yield {**base, "status": "measured", **row}
            for peer, reason in row["refused"].items():
                yield {**base, "status": "skipped", "direction": direction, "against": peer, "problem": reason}
        torch.cuda.empty_cache()


def try_tiles(deadline: float) -> Iterator[Row]:
    """Other tiles of attention next to those in use; where none is meant for a GPU, nothing."""
    import tiles

    if not tiles.has_alternatives():
        return
    for kind, others in tiles.ALTERNATIVES.items():
        for tile in others:
            if tile == tiles.table(kind).get(128):
                continue
            row: Row = {"op": "joint_attention", "kind": kind}
            if time.monotonic() > deadline:
                yield row | OUT_OF_TIME
                continue
            yield row | tiles.try_tile(kind, tile)
            torch.cuda.empty_cache()


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
    """The same for a part of the real size, if the case has one; its values are small, so their norm counts, too."""
    from tiles import MOST_ERROR

    if case.part is None:
        return ""
    try:
        ours, inputs = case.part()
    except Exception as error:
        traceback.print_exc()
        return first_line(error)
    return disagreement(ours, case.reference, inputs, dtype, MOST_ERROR)


def disagreement(
    ours: Any, reference: Any, inputs: list[torch.Tensor], dtype: torch.dtype, most: float = float("inf")
) -> str:
    from tests.kernels.agreement import assert_agrees

    try:
        assert_agrees(ours, reference, inputs, dtype, most)
    except Exception as error:
        traceback.print_exc()
        return first_line(error)
    finally:
        torch.cuda.empty_cache()
    return ""


def measure(case: Any, direction: str, copy: float) -> Row:
    """Times of the op and its peers, its floor and the share of it that was reached."""
    import torch._functorch.config
    from measure import interleaved, prepare

    from omnihuman_kernels.performance import H100_SXM, Device

    # One piece of torch's code calls whatever is compiled, and is compiled eight times; later peers would run plain.
    torch._dynamo.reset()
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
                traceback.print_exc()
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
