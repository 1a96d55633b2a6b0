"""The loop that every training shares: batches one step ahead, progress, metrics, watchers, checkpoints, signals.

What a step computes is its caller's affair. All that a step draws is a function of ``(seed, step)``: resuming is exact.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from omnihuman_core.contracts import LossOutput
from omnihuman_train.checkpointing import Checkpoints, step_generator
from omnihuman_train.config import RunConfig
from omnihuman_train.distributed.exchange import Batch, Layout, Note, Told, layout, same_parts
from omnihuman_train.distributed.mesh import World
from omnihuman_train.distributed.shards import whole
from omnihuman_train.ema import Ema
from omnihuman_train.folders import only_run_in
from omnihuman_train.metrics import MetricLog
from omnihuman_train.optim import OptimizerGroup
from omnihuman_train.progress import CountingBar
from omnihuman_train.stopping import Stopped, StopSignals
from omnihuman_train.watching import StepTiming, Watcher

# Stream of the random numbers that a model itself draws (posterior noise), apart from those of data and sigma.
MODEL_STREAM = 2
# Between the seeds of processes: its multiples lie far apart in their low 32 bits (Knuth, Fibonacci hashing), which are
# all that torch takes of a seed on a CPU, so no two processes draw the same posterior noise.
_RANK_SEEDS = 0x9E3779B1


class Trained(NamedTuple):
    """What a run trains, and what its checkpoints hold.

    Attributes:
        model: The trained module.
        ema: Average of its weights, or of a part of them.
        optimizer: What updates it.
    """

    model: nn.Module
    ema: Ema
    optimizer: OptimizerGroup


def run_steps(
    compute: Callable[[int, list[Batch], Callable[[], Note]], tuple[LossOutput, Told]],
    load: Callable[[int], list[Batch]],
    trained: Trained,
    config: RunConfig,
    world: World,
    out: Path,
    *,
    resolved: str,
    title: str,
    watchers: Sequence[Watcher] = (),
    validate: Callable[[int], Mapping[str, Tensor]] | None = None,
) -> None:
    """Run the steps of a training, from its newest checkpoint on.

    Args:
        compute: ``compute(step, parts, note)`` does a step, averages included: tells the other processes its losses and
            the note; gives loss and metrics of the samples of all, and what the processes have told each other.
        load: ``load(step)`` gives the parts of this process's batch; called one step ahead in a thread.
        trained: What the checkpoints hold, in place.
        config: Length, seed, intervals.
        world: Processes of the run.
        out: Folder of the run: ``checkpoints/`` and ``metrics.jsonl``.
        resolved: The whole configuration as TOML, stored with each checkpoint.
        title: Shown beside the progress bar.
        watchers: Told of every step, in order; closed at the end.
        validate: ``validate(done)`` gives scalars that join the metrics of a step; its time is not that of the step.

    Raises:
        ValueError: another run is at work in the folder, or a checkpoint does not fit.
        Stopped: a process was asked to stop by a signal; all end after the same step, whose checkpoint is written.
    """
    with only_run_in(out) if world.main else nullcontext():
        checkpoints = Checkpoints(out / "checkpoints", world, config=resolved, steps=config.steps)
        start = done = checkpoints.restore(*trained)
        log = MetricLog(out / "metrics.jsonl", start) if world.main else None
        saved = time.monotonic()
        batches = Ahead(load, range(start, config.steps), world.device)
        signals = StopSignals(notice=world.main)

        def note(step: int) -> Note:
            # All decide alike: a checkpoint is the work of all, and the clock of the first process counts.
            due = step + 1 == config.steps or time.monotonic() - saved > 60 * config.checkpoint_minutes
            coming = batches.layouts(step + 1) if world.size > 1 else []
            return Note(due=due, written=checkpoints.written, stop=signals.asked, coming=coming)

        try:
            with (
                batches,
                signals,
                progress_bar(title, start, config.steps, shown=world.main) as (advance, show),
            ):
                layouts = world.gather(batches.layouts(start)) if world.size > 1 else []
                for step in range(start, config.steps):
                    began = time.monotonic()
                    parts = [
                        same_parts(part, [of[number] for of in layouts if of], world.device)
                        for number, part in enumerate(batches.take(step))
                    ]
                    torch.manual_seed(model_seed(config.seed, step, world.data_rank))
                    output, told = compute(step, parts, partial(note, step))
                    layouts = [said.coming for said in told.notes]
                    seconds = time.monotonic() - began
                    timing = StepTiming(data_seconds=batches.waited(), step_seconds=seconds, samples=told.samples)
                    if validate is not None:
                        output = replace(output, metrics={**output.metrics, **validate(step + 1)})
                    for watcher in watchers:
                        watcher.step(step, output, timing)
                    if log is not None:
                        log.add(output)
                        if step + 1 == config.steps or (step + 1) % config.log_every == 0:
                            show(log.flush(step + 1))
                    advance()
                    done = step + 1
                    if all(said.written for said in told.notes):
                        checkpoints.finish()
                    asked = [said.stop for said in told.notes if said.stop]
                    if told.notes[0].due or asked:
                        checkpoints.save(done, *trained)
                        saved = time.monotonic()
                    if asked:
                        break
                checkpoints.finish()
                # Also those that came when nobody asked any more: what follows the steps may take long.
                if asked := [name for name in world.gather(signals.asked) if name]:
                    raise Stopped(asked[0], done, config.steps)
        finally:
            for watcher in watchers:
                watcher.close()


class Ahead:
    """Batches of steps, each loaded in a thread while the one before is worked on.

    Args:
        load: Gives the parts of the batch of a step.
        steps: The steps, in order.
        device: Where the batches go.
    """

    def __init__(self, load: Callable[[int], list[Batch]], steps: range, device: torch.device) -> None:
        self._load, self._steps, self._device = load, steps, device
        self._thread = ThreadPoolExecutor(1, "batches")
        self._coming: dict[int, Future[list[Batch]]] = {}
        self._waited = 0.0
        self._start(steps.start)

    def take(self, step: int) -> list[Batch]:
        """The batch of ``step``, part by part, on the device; the next one is begun."""
        began = time.monotonic()
        parts: list[Batch] = [on_device(part, self._device) for part in self._coming.pop(step).result()]
        self._waited += time.monotonic() - began
        self._start(step + 1)
        return parts

    def layouts(self, step: int) -> list[Layout]:
        """Which tensors the batch that comes next holds, part by part; none where there is no such one."""
        began = time.monotonic()
        coming = self._coming.get(step)
        # What went wrong is raised where the batch is taken.
        found = [] if coming is None or coming.exception() is not None else [layout(part) for part in coming.result()]
        self._waited += time.monotonic() - began
        return found

    def waited(self) -> float:
        """Seconds that were spent waiting for batches since this was asked last."""
        seconds, self._waited = self._waited, 0.0
        return seconds

    def _start(self, step: int) -> None:
        if step in self._steps:
            self._coming[step] = self._thread.submit(self._load, step)

    def __enter__(self) -> Self:
        """Ready: the first batch is under way."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the thread."""
        self._thread.shutdown()


def model_seed(seed: int, step: int, rank: int) -> int:
    """Seed of what the model of data process ``rank`` draws itself in ``step``."""
    return step_generator(seed, step, MODEL_STREAM).initial_seed() + rank * _RANK_SEEDS


def on_device(batch: Batch, device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on ``device``."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


@contextmanager
def progress_bar(
    title: str, start: int, steps: int, *, shown: bool
) -> Iterator[tuple[Callable[[], None], Callable[[str], None]]]:
    """A bar for the terminal; yields what advances it by a step, and what shows a text beside it."""
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with CountingBar(*columns, TextColumn("{task.fields[loss]}"), disable=not shown) as progress:
        bar = progress.add_task(title, total=steps, completed=start, loss="")
        yield lambda: progress.advance(bar), lambda text: progress.update(bar, loss=text)


def autocast(config: RunConfig, device: torch.device) -> torch.autocast:
    """The precision that a model runs in."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")


def check_finite(value: Tensor, step: int, what: str = "loss") -> None:
    """Stop where a loss, or the norm of a gradient, is no number: before it gets into the weights.

    Raises:
        FloatingPointError: the value is not finite.
    """
    if not math.isfinite(value.item()):
        raise FloatingPointError(f"step {step}: the {what} is {value.item()}; lower optimizer.lr or look at the batch")


def clip(module: nn.Module, limit: float) -> Tensor:
    """Scale the gradients to a norm of at most ``limit``; returns the norm over all processes before."""
    norm = whole(nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]))
    nn.utils.clip_grads_with_norm_(module.parameters(), limit, norm)
    return norm
