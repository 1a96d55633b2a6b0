"""Means of loss and metrics over several steps, and the JSON-lines file of a run that they go to."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

from omnihuman_core.checkpoint import create_part
from omnihuman_core.contracts import LossOutput

# The loss on held-out samples, shown beside that of training until the next one is measured.
VALIDATION = "validation/loss"


class Means:
    """Means of the loss and the metrics of several steps; entries that are not finite are left out."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}

    def __bool__(self) -> bool:
        """Whether there is anything to take the mean of."""
        return bool(self._sums)

    def add(self, output: LossOutput) -> None:
        """Take in one step."""
        for name, value in {"loss": output.loss, **output.metrics}.items():
            numbers = value.detach().float().reshape(-1)
            # An entry that is not finite says that a batch had no sample of that kind.
            numbers = numbers[numbers.isfinite()]
            if numbers.numel():
                entry = self._sums.setdefault(name, [0.0, 0.0])
                entry[0] += float(numbers.sum())
                entry[1] += numbers.numel()

    def take(self) -> dict[str, float]:
        """The means of the steps since the last call."""
        means = {name: total / count for name, (total, count) in self._sums.items()}
        self._sums = {}
        return means


class MetricLog:
    """Means of the metrics since the last row, appended to a JSON-lines file.

    The first row of a resumed run has the means of the steps since its checkpoint.

    Args:
        path: The file; rows that are there stay, up to the one of ``start``.
        start: Steps done.
    """

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        # A resumed run repeats the steps after its checkpoint: their old rows would count twice.
        drop_rows_after(path, start)
        self._means = Means()
        self._validation = ""
        self._since = time.monotonic()

    def add(self, output: LossOutput) -> None:
        """Take in one step."""
        self._means.add(output)

    def flush(self, step: int) -> str:
        """Write the row of ``step`` steps done and return the loss for the terminal."""
        means = self._means.take()
        seconds, self._since = time.monotonic() - self._since, time.monotonic()
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "seconds": round(seconds, 3), **means}) + "\n")
        if VALIDATION in means:
            self._validation = f", validation {means[VALIDATION]:.4f}"
        return f"loss {means['loss']:.4f}{self._validation}"


def drop_rows_after(path: Path, step: int) -> None:
    """Take the rows of later steps, and half ones, out of a file of rows; it is replaced whole or stays as it was.

    Raises:
        OSError: the new file cannot be written.
    """
    rows = path.read_text().splitlines() if path.exists() else []
    kept = [row for row in rows if _step_of(row) <= step]
    if len(kept) == len(rows):
        return
    handle, temporary = create_part(path)
    try:
        with os.fdopen(handle, "w") as file:
            file.writelines(row + "\n" for row in kept)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _step_of(row: str) -> float:
    """Step of a row; infinite for a row that a killed run left half written."""
    try:
        return int(json.loads(row)["step"])
    except ValueError:
        return math.inf
