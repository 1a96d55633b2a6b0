"""The loop that every training shares: batches one step ahead, progress, metrics, watchers, checkpoints.

What a step computes is its caller's affair. All that a step draws is a function of ``(seed, step)``: resuming is exact.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from omnihuman_core.contracts import LossOutput
from omnihuman_train.checkpointing import Checkpoints, step_generator
from omnihuman_train.config import RunConfig
from omnihuman_train.distributed.mesh import World
from omnihuman_train.distributed.shards import whole
from omnihuman_train.ema import Ema
from omnihuman_train.metrics import MetricLog
from omnihuman_train.optim import OptimizerGroup
from omnihuman_train.watching import StepTiming, Watcher

Batch = Mapping[str, Any]
# Stream of the random numbers that a model itself draws (posterior noise), apart from those of data and sigma.
MODEL_STREAM = 2
# Apart by more than all steps of a run: no two processes draw the same posterior noise.
_RANK_SEEDS = 1 << 48


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
    compute: Callable[[int, list[Batch]], tuple[LossOutput, int]],
    load: Callable[[int], list[Batch]],
    trained: Trained,
    config: RunConfig,
    world: World,
    out: Path,
    *,
    resolved: str,
    title: str,
    watchers: Sequence[Watcher] = (),
) -> None:
    """Run the steps of a training, from its newest checkpoint on.

    Args:
        compute: ``compute(step, parts)`` does a step, averages included; gives loss and metrics of the samples of all
            processes, and how many samples those are.
        load: ``load(step)`` gives the parts of this process's batch; called one step ahead in a thread.
        trained: What the checkpoints hold, in place.
        config: Length, seed, intervals.
        world: Processes of the run.
        out: Folder of the run: ``checkpoints/`` and ``metrics.jsonl``.
        resolved: The whole configuration as TOML, stored with each checkpoint.
        title: Shown beside the progress bar.
        watchers: Told of every step, in order; closed at the end.
    """
    checkpoints = Checkpoints(out / "checkpoints", world, config=resolved)
    start = checkpoints.restore(*trained)
    log = MetricLog(out / "metrics.jsonl", start) if world.main else None
    saved = time.monotonic()
    try:
        with (
            closing(prefetched(load, range(start, config.steps), world.device)) as batches,
            progress_bar(title, start, config.steps, shown=world.main) as (advance, show),
        ):
            for step, parts, began, waited in batches:
                seed = step_generator(config.seed, step, MODEL_STREAM).initial_seed()
                torch.manual_seed(seed + world.data_rank * _RANK_SEEDS)
                output, samples = compute(step, parts)
                timing = StepTiming(data_seconds=waited, step_seconds=time.monotonic() - began, samples=samples)
                for watcher in watchers:
                    watcher.step(step, output, timing)
                last = step + 1 == config.steps
                if log is not None:
                    log.add(output)
                    if last or (step + 1) % config.log_every == 0:
                        show(log.flush(step + 1))
                advance()
                # All decide alike: a checkpoint is the work of all, and the clock of the first process counts.
                due = last or time.monotonic() - saved > 60 * config.checkpoint_minutes
                votes = world.gather((due, checkpoints.written))
                if all(written for _, written in votes):
                    checkpoints.finish()
                if votes[0][0]:
                    checkpoints.save(step + 1, *trained)
                    saved = time.monotonic()
        checkpoints.finish()
        world.wait()
    finally:
        for watcher in watchers:
            watcher.close()


class Loaded(NamedTuple):
    """The batch of a step.

    Attributes:
        step: Number of the step.
        parts: The batch, part by part, on the device.
        began: When it was asked for, in seconds of the monotonic clock.
        waited: Seconds until it was there.
    """

    step: int
    parts: list[Batch]
    began: float
    waited: float


def prefetched(load: Callable[[int], list[Batch]], steps: range, device: torch.device) -> Generator[Loaded, None, None]:
    """The batches of ``steps``, each loaded in a thread while its caller works on the one before."""
    if not steps:
        return
    with ThreadPoolExecutor(1) as loader:
        coming: Future[list[Batch]] = loader.submit(load, steps[0])
        for step in steps:
            began = time.monotonic()
            parts: list[Batch] = [on_device(part, device) for part in coming.result()]
            waited = time.monotonic() - began
            if step + 1 in steps:
                coming = loader.submit(load, step + 1)
            yield Loaded(step, parts, began, waited)


def on_device(batch: Batch, device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on ``device``."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


@contextmanager
def progress_bar(
    title: str, start: int, steps: int, *, shown: bool
) -> Iterator[tuple[Callable[[], None], Callable[[str], None]]]:
    """A bar for the terminal; yields what advances it by a step, and what shows a text beside it."""
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[loss]}"), disable=not shown) as progress:
        bar = progress.add_task(title, total=steps, completed=start, loss="")
        yield lambda: progress.advance(bar), lambda text: progress.update(bar, loss=text)


def autocast(config: RunConfig, device: torch.device) -> torch.autocast:
    """The precision that a model runs in."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")


def check_finite(loss: Tensor, step: int) -> None:
    """Stop where a loss is no number.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    if not math.isfinite(loss.item()):
        raise FloatingPointError(f"step {step}: the loss is {loss.item()}; lower optimizer.lr or look at the batch")


def clip(module: nn.Module, limit: float) -> Tensor:
    """Scale the gradients to a norm of at most ``limit``; returns the norm over all processes before."""
    norm = whole(nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]))
    nn.utils.clip_grads_with_norm_(module.parameters(), limit, norm)
    return norm
