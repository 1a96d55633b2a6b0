"""The training loop, on one page. All that a step draws is a function of ``(seed, step)``: resuming is exact."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from omnihuman_core.contracts import LossOutput
from omnihuman_train.checkpointing import Checkpoints, step_generator
from omnihuman_train.config import RunConfig
from omnihuman_train.distributed.fsdp import loss_function, place
from omnihuman_train.distributed.mesh import World, join
from omnihuman_train.distributed.outputs import whole_output
from omnihuman_train.distributed.shards import whole
from omnihuman_train.ema import Ema
from omnihuman_train.metrics import MetricLog
from omnihuman_train.optim import OptimizerGroup, lr_factor
from omnihuman_train.watching import StepTiming, Watcher

Batch = Mapping[str, Any]
Batches = Callable[[int], Batch]
# Stream of the random numbers that a model itself draws (posterior noise), apart from those of data and sigma.
MODEL_STREAM = 2
# Apart by more than all steps of a run: no two processes draw the same posterior noise.
_RANK_SEEDS = 1 << 48


def fit(
    model: nn.Module,
    objective: Callable[[Any, Batch], LossOutput],
    batches: Batches | Sequence[Batches],
    config: RunConfig,
    out: Path,
    *,
    resolved: str,
    title: str,
    watchers: Sequence[Watcher] = (),
    world: World | None = None,
) -> Ema:
    """Train ``model`` and leave its average in the returned :class:`Ema`.

    Args:
        model: Module to train, in place. Several processes take the weights of the first one and shard them; the others
            may have built theirs on ``meta``.
        objective: Gives the loss of ``(model, batch)``: a mean over samples.
        batches: ``batches(step)`` is what this process computes in a step, called one step ahead in a thread; with
            ``config.accumulate``, so many of them, for its parts one after the other.
        config: Length, batch, precision, optimiser, processes.
        out: Folder of the run: ``checkpoints/`` and ``metrics.jsonl``. A run found there is resumed.
        resolved: The whole configuration as TOML, stored with each checkpoint.
        title: Shown beside the progress bar.
        watchers: Told of every step, in order; closed at the end.
        world: Processes of the run, where they have been joined before.

    Raises:
        FloatingPointError: the loss is not finite.
        ValueError: another number of sources of batches than ``run.accumulate``, sizes that do not fit the number of
            processes, or a checkpoint that does not fit.
    """
    sources = list(batches) if isinstance(batches, Sequence) else [batches]
    if len(sources) != config.accumulate:
        raise ValueError(f"run.accumulate is {config.accumulate}, but there are {len(sources)} sources of batches")
    world = join(config.parallel, config.device) if world is None else world
    place(model, world, config.precision)
    model.train()
    compute = loss_function(model, objective, world)
    ema, optimizer = Ema(model, config.ema_decay), OptimizerGroup(model, config.optimizer)
    checkpoints = Checkpoints(out / "checkpoints", world, config=resolved)
    start = checkpoints.restore(model, ema, optimizer)
    log = MetricLog(out / "metrics.jsonl", start) if world.main else None
    saved = time.monotonic()
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    bars = Progress(*columns, TextColumn("{task.fields[loss]}"), disable=not world.main)

    def load(step: int) -> list[Batch]:
        return [source(step) for source in sources]

    try:
        with ThreadPoolExecutor(1) as loader, bars as progress:
            bar = progress.add_task(title, total=config.steps, completed=start, loss="")
            coming = loader.submit(load, start)
            for step in range(start, config.steps):
                began = time.monotonic()
                parts = [_on_device(part, world.device) for part in coming.result()]
                waited = time.monotonic() - began
                if step + 1 < config.steps:
                    coming = loader.submit(load, step + 1)
                seed = step_generator(config.seed, step, MODEL_STREAM).initial_seed()
                torch.manual_seed(seed + world.data_rank * _RANK_SEEDS)
                output, samples = train_step(model, compute, parts, optimizer, config, step, world)
                ema.update(model, step)
                timing = StepTiming(data_seconds=waited, step_seconds=time.monotonic() - began, samples=samples)
                for watcher in watchers:
                    watcher.step(step, output, timing)
                last = step + 1 == config.steps
                if log is not None:
                    log.add(output)
                    if last or (step + 1) % config.log_every == 0:
                        progress.update(bar, loss=log.flush(step + 1))
                progress.advance(bar)
                # All decide alike: a checkpoint is the work of all, and the clock of the first process counts.
                due = last or time.monotonic() - saved > 60 * config.checkpoint_minutes
                votes = world.gather((due, checkpoints.written))
                if all(written for _, written in votes):
                    checkpoints.finish()
                if votes[0][0]:
                    checkpoints.save(step + 1, model, ema, optimizer)
                    saved = time.monotonic()
        checkpoints.finish()
        world.wait()
    finally:
        for watcher in watchers:
            watcher.close()
    return ema


def train_step(
    model: nn.Module,
    compute: Callable[[Batch], LossOutput],
    parts: Sequence[Batch],
    optimizer: OptimizerGroup,
    config: RunConfig,
    step: int,
    world: World,
) -> tuple[LossOutput, int]:
    """One step: loss and gradients part by part, clipping, update.

    Returns:
        Loss and metrics of the samples of all processes, and how many samples those are.
    """
    outputs = []
    for part in parts:
        with torch.autocast(world.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            outputs.append(compute(part))
        loss = outputs[-1].loss
        # Divided only where it has to be: one part alone is left as it is, to the bit.
        (loss / len(parts) if len(parts) > 1 else loss).backward()  # type: ignore[no-untyped-call]
    output, samples = whole_output(outputs, parts, world)
    if not math.isfinite(output.loss.item()):
        raise FloatingPointError(
            f"step {step}: the loss is {output.loss.item()}; lower optimizer.lr or look at the batch"
        )
    norm = _clip(model, config.optimizer.grad_clip)
    optimizer.step(lr_factor(config.optimizer, step, config.steps))
    return LossOutput(loss=output.loss, metrics={**output.metrics, "grad_norm": norm}), samples


def _clip(model: nn.Module, limit: float) -> Tensor:
    """Scale the gradients to a norm of at most ``limit``; returns the norm over all processes before."""
    norm = whole(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
    nn.utils.clip_grads_with_norm_(model.parameters(), limit, norm)
    return norm


def _on_device(batch: Batch, device: torch.device) -> dict[str, Any]:
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
