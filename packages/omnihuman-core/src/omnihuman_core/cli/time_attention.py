"""Times of functions: warmed up, taken in turns, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

WARM_UP = 2
MIN_ROUNDS, MAX_ROUNDS = 3, 50
# More than the second-level cache of any GPU.
CACHE_BYTES = 256 << 20


def interleaved(
    functions: Mapping[str, Callable[[], object]], device: torch.device, *, seconds: float
) -> dict[str, float]:
    """Median seconds of one call of each function.

    They take turns, so that a change of clock speed or of other load meets all of them. On a GPU the second-level cache
    is emptied before each call.

    Args:
        functions: Name to function.
        device: Where they run.
        seconds: Time to spend on all of them together, roughly.
    """
    dirt = torch.empty(CACHE_BYTES, dtype=torch.uint8, device=device) if device.type == "cuda" else None
    for function in functions.values():
        for _ in range(WARM_UP):
            function()
    first = sum(_once(function, dirt) for function in functions.values())
    rounds = max(MIN_ROUNDS, min(MAX_ROUNDS, int(seconds / max(first, 1e-9))))
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            taken[name].append(_once(function, dirt))
    return {name: statistics.median(times) for name, times in taken.items()}


def _once(function: Callable[[], object], dirt: Tensor | None) -> float:
    if dirt is None:
        begin = time.perf_counter()
        function()
        return time.perf_counter() - begin
    dirt.zero_()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    function()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3
