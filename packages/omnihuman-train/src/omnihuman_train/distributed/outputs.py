"""Loss and metrics of a step over all processes, as one process would have had them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from omnihuman_core.contracts import LossOutput
from omnihuman_train.distributed.mesh import World

# Loss, metrics as (is a scalar, values), samples.
_Part = tuple[float, dict[str, tuple[bool, list[float]]], int]


def whole_output(
    outputs: Sequence[LossOutput], batches: Sequence[Mapping[str, Any]], world: World
) -> tuple[LossOutput, int]:
    """The output of a whole batch, on every process, and its number of samples.

    Scalars are means over the equal parts of the batch, a scalar that is no number (absent) left out; values of samples
    stand in the order of the rows.

    Args:
        outputs: Of the parts that this process has computed.
        batches: Those parts.
        world: Processes of the run; all of them call this.
    """
    samples = [rows(batch) for batch in batches]
    if world.size == 1 and len(outputs) == 1:
        return LossOutput(loss=outputs[0].loss.detach(), metrics=outputs[0].metrics), samples[0]
    mine = [_numbers(output, count) for output, count in zip(outputs, samples, strict=True)]
    # Of a sequence group one process speaks.
    parts = [part for of_process in world.gather(mine)[:: world.sequence] for part in of_process]
    names = dict.fromkeys(name for _, metrics, _ in parts for name in metrics)
    metrics = {name: _joined([entries[name] for _, entries, _ in parts if name in entries]) for name in names}
    loss = torch.tensor([loss for loss, _, _ in parts]).mean()
    return LossOutput(loss=loss, metrics=metrics), sum(count for _, _, count in parts)


def rows(batch: Mapping[str, Any]) -> int:
    """Samples of a batch: the length of its first tensor that has one."""
    return next((value.shape[0] for value in batch.values() if isinstance(value, Tensor) and value.ndim), 0)


def _numbers(output: LossOutput, samples: int) -> _Part:
    values = {
        name: (not value.ndim, value.detach().float().reshape(-1).tolist()) for name, value in output.metrics.items()
    }
    return output.loss.item(), values, samples


def _joined(parts: Sequence[tuple[bool, list[float]]]) -> Tensor:
    values = torch.tensor([value for _, numbers in parts for value in numbers])
    return values.nanmean() if parts[0][0] else values
