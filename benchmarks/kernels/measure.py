"""Times on a GPU: interleaved rounds, medians, a cold cache."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

GIB = 1 << 30

# About 2 ms on current GPUs: long enough to launch the kernels of a block of plain torch.
SLEEP_CYCLES = 4_000_000


def copy_bandwidth() -> float:
    """Bytes a second, read plus written, of a copy of 1 GiB: what memory-bound kernels are measured against."""
    source = torch.empty(GIB, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = interleaved({"copy": lambda: target.copy_(source)}, seconds=0.5)["copy"]
    return 2 * GIB / seconds


def interleaved(functions: dict[str, Callable[[], object]], *, seconds: float) -> dict[str, float]:
    """Median seconds of each function.

    The functions take turns, so that a change of clock speed meets all of them. Before each, a read of 256 MiB empties
    the second-level cache; a write would leave lines there that the timed kernel has to write back. Then the GPU
    sleeps, so that launches are over, or well ahead, when the clock starts.

    Args:
        functions: Name to function; each is called twice before it is timed.
        seconds: Time to spend on all of them together, roughly; at least three rounds are run.
    """
    dirt = torch.zeros(GIB // 4, dtype=torch.uint8, device="cuda")
    for function in functions.values():
        for _ in range(2):
            function()
    torch.cuda.synchronize()
    first = {name: _once(function, dirt) for name, function in functions.items()}
    rounds = max(3, min(50, int(seconds / max(sum(first.values()), 1e-6))))
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            taken[name].append(_once(function, dirt))
    return {name: statistics.median(values) for name, values in taken.items()}


def _once(function: Callable[[], object], dirt: Tensor) -> float:
    dirt.sum()
    torch.cuda._sleep(SLEEP_CYCLES)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def prepare(
    function: Callable[..., Any],
    inputs: Sequence[Tensor],
    differentiable: int,
    direction: str,
    upstream: Sequence[Tensor] | None = None,
) -> Callable[[], Any]:
    """A call without arguments: the forward, or the backward of a graph that was built once.

    Args:
        function: What to call.
        inputs: Its arguments; the first ``differentiable`` of them get gradients.
        differentiable: How many.
        direction: ``forward`` or ``backward``.
        upstream: Gradients of the outputs; None draws them.
    """
    if direction == "forward":

        def forward() -> object:
            with torch.no_grad():
                return function(*inputs)

        return forward
    leaves = [x.detach().requires_grad_(i < differentiable) for i, x in enumerate(inputs)]
    out = function(*leaves)
    outs = list(out) if isinstance(out, tuple) else [out]
    given = [torch.randn_like(y) for y in outs] if upstream is None else list(upstream)
    return lambda: torch.autograd.grad(outs, leaves[:differentiable], given, retain_graph=True)
