"""The training loop, on one page. All that a step draws is a function of ``(seed, step)``: resuming is exact."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from omnihuman_core.contracts import LossOutput
from omnihuman_train.checkpointing import checkpoints, load_checkpoint, save_checkpoint, step_generator
from omnihuman_train.config import RunConfig
from omnihuman_train.ema import Ema
from omnihuman_train.optim import OptimizerGroup, lr_factor

Batch = Mapping[str, Any]
# Stream of the random numbers that a model itself draws (posterior noise), apart from those of data and sigma.
MODEL_STREAM = 2


def fit(
    model: nn.Module,
    objective: Callable[[Any, Batch], LossOutput],
    batches: Callable[[int], Batch],
    config: RunConfig,
    out: Path,
    *,
    resolved: str,
    title: str,
) -> Ema:
    """Train ``model`` and leave its average in the returned :class:`Ema`.

    Args:
        model: Module to train, in place.
        objective: Gives the loss of ``(model, batch)``.
        batches: ``batches(step)`` is the batch of a step; called one step ahead in a thread.
        config: Length, batch, precision, optimiser.
        out: Folder of the run: ``checkpoints/`` and ``metrics.jsonl``. A run found there is resumed.
        resolved: The whole configuration as TOML, stored with each checkpoint.
        title: Shown beside the progress bar.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    device = torch.device(config.device)
    model.to(device).train()
    ema, optimizer = Ema(model, config.ema_decay), OptimizerGroup(model, config.optimizer)
    folder = out / "checkpoints"
    done = checkpoints(folder)
    start = load_checkpoint(done[-1], model, ema, optimizer) if done else 0
    log = MetricLog(out / "metrics.jsonl", start)
    saved = time.monotonic()
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with ThreadPoolExecutor(1) as loader, Progress(*columns, TextColumn("{task.fields[loss]}")) as progress:
        bar = progress.add_task(title, total=config.steps, completed=start, loss="")
        coming = loader.submit(batches, start)
        for step in range(start, config.steps):
            batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in coming.result().items()}
            if step + 1 < config.steps:
                coming = loader.submit(batches, step + 1)
            torch.manual_seed(step_generator(config.seed, step, MODEL_STREAM).initial_seed())
            output = train_step(model, objective, batch, optimizer, config, step)
            ema.update(model, step)
            log.add(step, output)
            last = step + 1 == config.steps
            if last or (step + 1) % config.log_every == 0:
                progress.update(bar, loss=log.flush(step + 1))
            progress.advance(bar)
            if last or time.monotonic() - saved > 60 * config.checkpoint_minutes:
                save_checkpoint(folder, step + 1, model, ema, optimizer, config=resolved)
                saved = time.monotonic()
    return ema


def train_step(
    model: nn.Module,
    objective: Callable[[Any, Batch], LossOutput],
    batch: Batch,
    optimizer: OptimizerGroup,
    config: RunConfig,
    step: int,
) -> LossOutput:
    """One step: loss, gradients, clipping, update. Returns the loss and its metrics."""
    device_type = torch.device(config.device).type
    with torch.autocast(device_type, torch.bfloat16, enabled=config.precision == "bf16"):
        output = objective(model, batch)
    if not math.isfinite(output.loss.item()):
        raise FloatingPointError(
            f"step {step}: the loss is {output.loss.item()}; lower optimizer.lr or look at the batch"
        )
    output.loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.grad_clip)
    optimizer.step(lr_factor(config.optimizer, step, config.steps))
    return LossOutput(loss=output.loss.detach(), metrics={**output.metrics, "grad_norm": norm})


class MetricLog:
    """Means of the metrics since the last row, appended to a JSON-lines file.

    Entries that are not finite (absent in a batch) are left out. The first row of a resumed run has the means of the
    steps since its checkpoint.

    Args:
        path: The file; rows that are there stay, up to the one of ``start``.
        start: Steps done.
    """

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = path.read_text().splitlines() if path.exists() else []
        # A resumed run repeats the steps after its checkpoint: their old rows would count twice.
        path.write_text("".join(row + "\n" for row in rows if _step_of(row) <= start))
        self._sums: dict[str, list[float]] = {}
        self._since = time.monotonic()

    def add(self, step: int, output: LossOutput) -> None:
        """Take in one step."""
        for name, value in {"loss": output.loss, **output.metrics}.items():
            numbers = value.detach().float().reshape(-1)
            numbers = numbers[numbers.isfinite()]
            if numbers.numel():
                entry = self._sums.setdefault(name, [0.0, 0.0])
                entry[0] += float(numbers.sum())
                entry[1] += numbers.numel()

    def flush(self, step: int) -> str:
        """Write the row of ``step`` steps done and return the loss for the terminal."""
        means = {name: total / count for name, (total, count) in self._sums.items()}
        seconds, self._since, self._sums = time.monotonic() - self._since, time.monotonic(), {}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "seconds": round(seconds, 3), **means}) + "\n")
        return f"loss {means['loss']:.4f}"


def _step_of(row: str) -> float:
    """Step of a row; infinite for a row that a killed run left half written."""
    try:
        return int(json.loads(row)["step"])
    except ValueError:
        return math.inf
