"""What the processes of a run tell each other in a step, all of it at once.

Loss and metrics, as one process would have had them; whether a checkpoint is due and written; whether to stop; and
which tensors the batch of the next step holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from omnihuman_core.contracts import LossOutput
from omnihuman_train.distributed.mesh import World

Batch = Mapping[str, Any]
# Shape of a row and dtype of each tensor of a batch.
Layout = dict[str, tuple[torch.Size, torch.dtype]]
# Loss, metrics as (is a scalar, values).
_Numbers = tuple[float, dict[str, tuple[bool, list[float]]]]


@dataclass(frozen=True, kw_only=True)
class Note:
    """What a process tells the others beside its losses.

    Attributes:
        due: Whether it is time for a checkpoint, by its clock.
        written: Whether it has written its part of the last one.
        stop: Name of the signal that asked it to stop; empty where none has.
        coming: Layouts of the parts of its next batch; none where that cannot be had.
    """

    due: bool = False
    written: bool = False
    stop: str = ""
    coming: list[Layout] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Told:
    """What all processes have told each other.

    Attributes:
        outputs: Each of the step's losses with its metrics, for the samples of all processes.
        samples: How many samples those are.
        notes: Of all processes, in their order.
    """

    outputs: list[LossOutput]
    samples: int
    notes: list[Note]


def exchange(
    outputs: Sequence[Sequence[LossOutput]], batches: Sequence[Batch], world: World, note: Callable[[], Note] = Note
) -> Told:
    """Losses of a whole batch, on every process; one collective.

    Scalars are means over the equal parts of the batch, a scalar that is no number (absent) left out; values of samples
    stand in the order of the rows.

    Args:
        outputs: For each loss of the step, those of the parts that this process has computed.
        batches: Those parts.
        world: Processes of the run; all of them call this.
        note: Gives what else this process has to say.
    """
    samples = sum(rows(batch) for batch in batches)
    if world.size == 1 and len(batches) == 1:
        alone = [LossOutput(loss=output.loss.detach(), metrics=output.metrics) for (output,) in outputs]
        return Told(outputs=alone, samples=samples, notes=[note()])
    mine = [[_numbers(output) for output in of_loss] for of_loss in outputs]
    everyone = world.gather((mine, samples, note()))
    # Of a sequence group one process speaks.
    speakers = everyone[:: world.sequence]
    return Told(
        outputs=[_joined([part for said, _, _ in speakers for part in said[loss]]) for loss in range(len(outputs))],
        samples=sum(count for _, count, _ in speakers),
        notes=[told for _, _, told in everyone],
    )


def rows(batch: Batch) -> int:
    """Samples of a batch: the length of its first tensor that has one."""
    return next((value.shape[0] for value in batch.values() if isinstance(value, Tensor) and value.ndim), 0)


def layout(batch: Batch) -> Layout:
    """Which tensors a batch holds, and what their rows are like."""
    return {key: (value.shape[1:], value.dtype) for key, value in batch.items() if isinstance(value, Tensor)}


def same_parts(batch: Batch, layouts: Sequence[Layout], device: torch.device) -> Batch:
    """``batch`` with the tensors that it lacks and the batch of another process has: one row of zeros each.

    A sharded model reduces each gradient over all processes, so they must all use the same weights. Where a batch has
    None for a part that others have rows of (no sample keeps its pose), the objective passes those zeros through the
    model and leaves them out of the loss.

    Args:
        batch: Batch of this process.
        layouts: Of all processes.
        device: Where the zeros go.
    """
    unused = {
        key: torch.zeros(1, *shape, dtype=dtype, device=device)
        for found in layouts
        for key, (shape, dtype) in found.items()
        if key in batch and batch[key] is None
    }
    return {**batch, **unused}


def _numbers(output: LossOutput) -> _Numbers:
    values = {
        name: (not value.ndim, value.detach().float().reshape(-1).tolist()) for name, value in output.metrics.items()
    }
    return output.loss.item(), values


def _joined(parts: Sequence[_Numbers]) -> LossOutput:
    names = dict.fromkeys(name for _, metrics in parts for name in metrics)
    metrics = {name: _all_of([entries[name] for _, entries in parts if name in entries]) for name in names}
    return LossOutput(loss=torch.tensor([loss for loss, _ in parts]).mean(), metrics=metrics)


def _all_of(parts: Sequence[tuple[bool, list[float]]]) -> Tensor:
    values = torch.tensor([value for _, numbers in parts for value in numbers])
    return values.nanmean() if parts[0][0] else values
