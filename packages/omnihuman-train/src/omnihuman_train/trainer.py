"""Training of one model by one objective; a step is the gradient of its batch, clipped, and an update."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from omnihuman_core.contracts import LossOutput
from omnihuman_train.config import RunConfig
from omnihuman_train.distributed.exchange import Batch, Note, Told, exchange
from omnihuman_train.distributed.fsdp import loss_function, place
from omnihuman_train.distributed.mesh import World, join
from omnihuman_train.ema import Ema
from omnihuman_train.loop import Trained, autocast, check_finite, clip, run_steps
from omnihuman_train.optim import OptimizerGroup, lr_factor
from omnihuman_train.watching import Watcher

Batches = Callable[[int], Batch]


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
    validate: Callable[[int, Ema], Mapping[str, Tensor]] | None = None,
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
        validate: ``validate(done, average)`` gives scalars that join the metrics of a step; called on all processes.

    Raises:
        FloatingPointError: the loss or the norm of its gradient is not finite; weights stay those of before.
        ValueError: another number of sources of batches than ``run.accumulate``, sizes that do not fit the number of
            processes, or a checkpoint that does not fit.
    """
    sources = list(batches) if isinstance(batches, Sequence) else [batches]
    if len(sources) != config.accumulate:
        raise ValueError(f"run.accumulate is {config.accumulate}, but there are {len(sources)} sources of batches")
    here = join(config.parallel, config.device) if world is None else world
    place(model, here, config.precision)
    model.train()
    compute = loss_function(model, objective)
    ema, optimizer = Ema(model, config.ema_decay), OptimizerGroup(model, config.optimizer)

    def load(step: int) -> list[Batch]:
        return [source(step) for source in sources]

    def step(number: int, parts: list[Batch], note: Callable[[], Note]) -> tuple[LossOutput, Told]:
        done = train_step(model, compute, parts, optimizer, config, number, here, note)
        ema.update(model, number)
        return done

    trained = Trained(model, ema, optimizer)
    run_steps(
        step,
        load,
        trained,
        config,
        here,
        out,
        resolved=resolved,
        title=title,
        watchers=watchers,
        validate=None if validate is None else lambda done: validate(done, ema),
    )
    return ema


def train_step(
    model: nn.Module,
    compute: Callable[[Batch], LossOutput],
    parts: Sequence[Batch],
    optimizer: OptimizerGroup,
    config: RunConfig,
    step: int,
    world: World,
    note: Callable[[], Note],
) -> tuple[LossOutput, Told]:
    """One step: loss and gradients part by part, clipping, update.

    Returns:
        Loss and metrics of the samples of all processes, and what these have told each other.
    """
    outputs = []
    for part in parts:
        with autocast(config, world.device):
            outputs.append(compute(part))
        loss = outputs[-1].loss
        # Divided only where it has to be: one part alone is left as it is, to the bit.
        (loss / len(parts) if len(parts) > 1 else loss).backward()  # type: ignore[no-untyped-call]
    told = exchange([outputs], parts, world, note)
    (output,) = told.outputs
    check_finite(output.loss, step)
    norm = clip(model, config.optimizer.grad_clip)
    check_finite(norm, step, "norm of the gradient")
    optimizer.step(lr_factor(config.optimizer, step, config.steps))
    return LossOutput(loss=output.loss, metrics={**output.metrics, "grad_norm": norm}), told
