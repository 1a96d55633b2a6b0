"""Stops a run whose loss is not finite or jumps, and saves which samples it had last.

A run that was stopped does not start again by itself: who restarts processes that die would go on over the spike, with
a guard that has forgotten the losses before it. So these are kept, and a file says that somebody has to look first.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from omnihuman_core.contracts import LossOutput
from omnihuman_train.watching import StepTiming

# A deviation is taken to be at least this share of the median: a loss that hardly moves may move a little.
LEAST_DEVIATION = 0.02
# Losses before the guard judges; from a few, a deviation is a guess.
LEAST_HISTORY = 50
# The median absolute deviation of a normal distribution, times this, is its standard deviation.
NORMAL = 1.4826
# A run does not start while the first is there; the second has the losses of all steps, for a run that goes on.
STOPPED, LOSSES = "stopped.json", "losses.jsonl"


def check_not_stopped(folder: Path) -> None:
    """Check that no guard has stopped the run before.

    Args:
        folder: The guard's.

    Raises:
        ValueError: one has, and nobody has deleted its note.
    """
    path = folder / STOPPED
    if path.exists():
        try:
            reason = json.loads(path.read_text())["reason"]
        except (ValueError, KeyError, TypeError):
            reason = "its note cannot be read"
        raise ValueError(
            f"{path}: the guard stopped this run ({reason}); look at the samples that {folder}/stopped_rank_*.json "
            f"name, then delete {path} to go on from the last checkpoint"
        )


class LossGuard:
    """A :class:`~omnihuman_train.watching.Watcher` that raises at a loss that no healthy run has.

    A loss is a *spike* where it exceeds the median of the last ``window`` losses by more than ``deviations`` times
    their standard deviation, estimated robustly: 1.4826 times the median absolute deviation, at least 2 % of the
    median. Nothing is judged in the first 50 steps. A spike does not join the losses that are looked back on.

    Ten deviations are far outside what batches differ by. A loss that climbs over hundreds of steps is no spike.

    The losses of a run that goes on are those of before its first step: the first rank keeps them in ``losses.jsonl``.

    Args:
        folder: Where the samples of the step are named, in ``step_NNNNNNNN_rank_R.json``.
        deviations: Deviations over the median that make a spike.
        window: Losses that are looked back on.
        keys: Gives the keys of the samples that this rank had last.
        rank: Number of this rank.
    """

    def __init__(
        self,
        folder: Path,
        *,
        deviations: float = 10.0,
        window: int = 200,
        keys: Callable[[], Sequence[str]] = list,
        rank: int = 0,
    ) -> None:
        self._folder, self._deviations, self._keys, self._rank = folder, deviations, keys, rank
        self._losses: deque[float] = deque(maxlen=window)
        self._started = False
        self._file: TextIO | None = None

    def step(self, step: int, output: LossOutput, timing: StepTiming) -> None:
        """Judge one step.

        Raises:
            FloatingPointError: the loss or the norm of its gradient is not finite, or the loss is a spike.
        """
        if not self._started:
            self._start(step)
        loss = float(output.loss)
        norm = float(output.metrics["grad_norm"]) if "grad_norm" in output.metrics else 0.0
        if not math.isfinite(loss):
            self.stop(step, loss, f"the loss is {loss}")
        if not math.isfinite(norm):
            self.stop(step, loss, f"the norm of the gradient is {norm}")
        limit = self.limit()
        if loss > limit:
            self.stop(step, loss, f"the loss is {loss:.4g}, a jump: {limit:.4g} is the limit after the losses before")
        self._losses.append(loss)
        if self._file is not None:
            self._file.write(json.dumps({"step": step, "loss": loss}) + "\n")
            self._file.flush()

    def limit(self) -> float:
        """The loss from which on a step is a spike; infinite while too little is known."""
        if len(self._losses) < min(LEAST_HISTORY, self._losses.maxlen or LEAST_HISTORY):
            return math.inf
        middle = statistics.median(self._losses)
        spread = NORMAL * statistics.median(abs(loss - middle) for loss in self._losses)
        return middle + self._deviations * max(spread, LEAST_DEVIATION * abs(middle))

    def stop(self, step: int, loss: float, reason: str) -> None:
        """Save the samples of ``step`` and raise.

        Raises:
            FloatingPointError: always.
        """
        path = self.save(f"step_{step:08d}", reason, loss if math.isfinite(loss) else str(loss))
        raise FloatingPointError(
            f"step {step}: {reason}; its samples are named in {path}. The last checkpoint is from before it: look at "
            f"them, lower run.optimizer.lr, or go on with a higher watch.spike_deviations"
        )

    def save(self, name: str, reason: str, loss: float | str | None = None) -> Path:
        """Name the samples that this rank had last in ``NAME_rank_R.json``; returns that file."""
        path = self._folder / f"{name}_rank_{self._rank}.json"
        self._folder.mkdir(parents=True, exist_ok=True)
        note = {"reason": reason, "loss": loss, "keys": list(self._keys()), "losses_before": list(self._losses)[-20:]}
        path.write_text(json.dumps(note, indent=1) + "\n")
        return path

    def stopped(self, reason: str) -> None:
        """Name the samples that this rank had last, and keep the run from starting before somebody looked at them."""
        self.save("stopped", reason)
        # All ranks may come here at once, with the same reason.
        partial = self._folder / f".{STOPPED}.{self._rank}.part"
        partial.write_text(json.dumps({"reason": reason}) + "\n")
        partial.replace(self._folder / STOPPED)

    def _start(self, step: int) -> None:
        """Take up the losses before ``step``; what came after them is done anew."""
        path = self._folder / LOSSES
        losses: dict[int, float] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                row = json.loads(line)
                losses[row["step"]] = row["loss"]
            except (ValueError, KeyError, TypeError):
                # Half a line of a run that was killed.
                continue
        self._losses.extend(losses[number] for number in sorted(losses) if number < step)
        if self._rank == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a")
        self._started = True

    def close(self) -> None:
        """Close the file of the losses."""
        if self._file is not None:
            self._file.close()
            self._file = None
