"""``omnihuman-core bench-attention``: compare every backend that runs here, time the right ones, write the table."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from omnihuman_core.cli.compare_attention import Case, disagreement
from omnihuman_core.cli.time_attention import interleaved
from omnihuman_core.contracts import Attention, AttentionSupport
from omnihuman_core.ops.attention_backends import (
    AttentionBackend,
    Target,
    attention_backend,
    backend_names,
    describe_target,
    dtype_name,
    one_line,
    support_on,
    why_not,
)
from omnihuman_core.ops.attention_table import (
    AttentionRow,
    Direction,
    check_place,
    merge,
    read_table,
    user_table,
    write_table,
)

# Text alone; one latent frame and clips of 480p and 720p at HunyuanVideo's widths.
CUDA_SHAPES = "1x256x24x128,1x2048x24x128,1x8704x24x128,1x51736x24x128,1x119056x24x128"
# The shipped small model.
CPU_SHAPES = "1x128x4x64,1x512x4x64,1x2048x4x64"

# Backends that write the scores out, and what they may take: backward keeps three copies.
SCORES = ("eager",)
SCORE_COPIES = 4
CPU_SCORE_BYTES = 2 << 30


@dataclass(kw_only=True)
class Outcome:
    """What became of one backend at one shape.

    Attributes:
        name: The backend.
        seconds: Median times; empty unless it was found right.
        wrong: What is wrong with it.
        skipped: Why it did not run.
    """

    name: str
    seconds: dict[Direction, float] = field(default_factory=dict)
    wrong: str = ""
    skipped: str = ""


def bench_attention(*, device: str, dtype: str | None, shapes: str | None, out: Path | None, seconds: float) -> bool:
    """Measure and write the table; prints what it finds.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: Name of a dtype; None takes bfloat16 on CUDA and float32 elsewhere.
        shapes: ``BxLxNxK`` with commas between; None takes those that models have.
        out: Table to write or add to; None takes the user's.
        seconds: Time for one shape and direction.

    Returns:
        Whether every backend that ran was right.

    Raises:
        ValueError: an argument cannot be understood, the device is not there, or the table cannot be read or written.
    """
    where = _device(device)
    chosen: torch.dtype = getattr(torch, dtype or ("bfloat16" if where.type == "cuda" else "float32"))
    cases = parse_shapes(shapes or (CUDA_SHAPES if where.type == "cuda" else CPU_SHAPES))
    try:
        out = user_table() if out is None else out
    except RuntimeError as error:
        raise ValueError(f"no place for the table ({error}); name one with --out") from None
    # A table that cannot be read or written is found before the work, not after it.
    check_place(out)
    old = read_table(out) if out.exists() else ()
    target = describe_target(where, chosen)
    if where.type == "cuda":
        # Events and kernels of other packages go to the current device.
        torch.cuda.set_device(where)
    console = Console()
    console.print(f"{target.name}, {dtype_name(chosen)}, torch {torch.__version__}", markup=False, highlight=False)
    backends = []
    for name in backend_names():
        backend = attention_backend(name)
        reason = why_not(backend, target)
        if reason is None:
            backends.append(backend)
        else:
            console.print(f"  {name}: {reason}", markup=False, highlight=False)
    loaded = [(backend, backend.load()) for backend in backends]
    rows: list[AttentionRow] = []
    right = True
    for case in cases:
        outcomes = measure(case, target, loaded, seconds=seconds)
        _show(console, case, outcomes)
        if target.device.type == "cuda":
            # The next shape is larger and may need what the allocator keeps for this one.
            torch.cuda.empty_cache()
        rows += _rows(case, target, outcomes)
        right = right and not any(outcome.wrong for outcome in outcomes)
    if rows:
        write_table(out, merge(old, rows))
        console.print(f"{len(rows)} times written to {out}", markup=False, highlight=False, soft_wrap=True)
    else:
        console.print("no backend could be timed, nothing was written")
    return right and bool(rows)


def parse_shapes(text: str) -> list[Case]:
    """``1x2048x24x128,...`` to cases with and without a key mask.

    Raises:
        ValueError: a shape cannot be read, or two would share a row of the table.
    """
    cases = []
    seen = set()
    for part in text.split(","):
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){3}", part.strip()):
            raise ValueError(f"--shapes: {part.strip()!r} must be BxLxNxK, such as 1x2048x24x128")
        batch, length, heads, head_dim = (int(number) for number in part.split("x"))
        if (length, head_dim) in seen:
            raise ValueError(f"--shapes: two have {length} tokens and heads of {head_dim}; the table holds one of them")
        seen.add((length, head_dim))
        cases += [
            Case(batch=batch, length=length, heads=heads, head_dim=head_dim, masked=masked) for masked in (False, True)
        ]
    return cases


def measure(
    case: Case, target: Target, backends: Sequence[tuple[AttentionBackend, Attention]], *, seconds: float
) -> list[Outcome]:
    """Compare the backends at a shape, then time those that are right, side by side."""
    inputs, mask = case.inputs(target.device, target.dtype), case.mask(target.device)
    outcomes = {backend.name: Outcome(name=backend.name) for backend, _ in backends}
    ready: dict[Direction, dict[str, Callable[[], object]]] = {"forward": {}, "training": {}}
    for backend, attention in backends:
        outcome = outcomes[backend.name]
        support = support_on(backend, target) or AttentionSupport(device=None)
        outcome.skipped = _unfit(backend, support, case, target)
        if outcome.skipped:
            continue
        try:
            with warnings.catch_warnings():
                # torch says in several warnings why a kernel cannot run; the error that follows is shown.
                warnings.simplefilter("ignore")
                outcome.wrong = disagreement(attention, case, inputs, mask, backward=support.backward)
                if outcome.wrong:
                    continue
                for direction in _directions(support):
                    call = _prepare(attention, inputs, mask, direction)
                    call()
                    ready[direction][backend.name] = call
        except torch.OutOfMemoryError:
            outcome.skipped = "out of memory"
        except Exception as error:
            # Any backend may fail in its own way; the others are still measured.
            outcome.skipped = f"fails: {one_line(error)}"
    for direction, calls in ready.items():
        calls = {name: call for name, call in calls.items() if not (outcomes[name].wrong or outcomes[name].skipped)}
        for name, median in interleaved(calls, target.device, seconds=seconds).items() if calls else ():
            outcomes[name].seconds[direction] = median
    return list(outcomes.values())


def _directions(support: AttentionSupport) -> Iterator[Direction]:
    yield "forward"
    if support.backward:
        yield "training"


def _unfit(backend: AttentionBackend, support: AttentionSupport, case: Case, target: Target) -> str:
    if support.head_dims is not None and case.head_dim not in support.head_dims:
        return f"takes no heads of width {case.head_dim}"
    if case.masked and not support.key_mask:
        return "takes no key mask"
    if backend.name in SCORES:
        size = SCORE_COPIES * case.batch * case.heads * case.length**2 * target.dtype.itemsize
        free = CPU_SCORE_BYTES if target.device.type != "cuda" else torch.cuda.mem_get_info(target.device)[0] // 2
        if size > free:
            return f"its scores would take {size / 2**30:.0f} GiB"
    return ""


def _prepare(
    attention: Attention, inputs: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, direction: Direction
) -> Callable[[], object]:
    q, k, v = inputs
    if direction == "forward":

        def forward() -> object:
            with torch.no_grad():
                return attention(q, k, v, mask=mask)

        return forward
    leaves = [x.detach().requires_grad_() for x in inputs]

    def training() -> object:
        # q stands for any upstream gradient; all of one value would be a special one.
        return torch.autograd.grad(attention(*leaves, mask=mask), leaves, q)

    return training


def _rows(case: Case, target: Target, outcomes: Sequence[Outcome]) -> Iterator[AttentionRow]:
    for outcome in outcomes:
        for direction, median in outcome.seconds.items():
            yield AttentionRow(
                device=target.name,
                dtype=dtype_name(target.dtype),
                batch=case.batch,
                length=case.length,
                heads=case.heads,
                head_dim=case.head_dim,
                masked=case.masked,
                direction=direction,
                backend=outcome.name,
                seconds=median,
                torch=torch.__version__,
                date=datetime.now(UTC).date().isoformat(),
            )


def _show(console: Console, case: Case, outcomes: Sequence[Outcome]) -> None:
    """One table a shape; the fastest of each column is bold."""
    masked = ", key mask" if case.masked else ""
    table = Table(title=f"{case.batch} x {case.length} x {case.heads} x {case.head_dim}{masked}", title_justify="left")
    table.add_column("backend")
    for title in ("forward, ms", "forward, Gflop/s", "training, ms"):
        table.add_column(title, justify="right")
    table.add_column("note")
    best = {
        direction: min((o.seconds[direction] for o in outcomes if direction in o.seconds), default=0.0)
        for direction in ("forward", "training")
    }
    work = 4 * case.batch * case.heads * case.length**2 * case.head_dim
    for outcome in outcomes:
        cells = []
        for direction in ("forward", "training"):
            seconds = outcome.seconds.get(direction)
            cell = "" if seconds is None else f"{seconds * 1e3:.3f}"
            cells.append(f"[bold]{cell}[/bold]" if seconds is not None and seconds == best[direction] else cell)
        speed = f"{work / outcome.seconds['forward'] / 1e9:.0f}" if outcome.seconds else ""
        note = f"WRONG: {outcome.wrong}" if outcome.wrong else outcome.skipped
        table.add_row(outcome.name, cells[0], speed, cells[1], escape(note))
    console.print(table)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"--device: must be auto, cpu, cuda or cuda:N, got {name!r}")
    return torch.device("cuda", 0) if name == "cuda" else torch.device(name)
