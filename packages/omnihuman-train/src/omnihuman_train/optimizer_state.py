"""State of an optimiser as flat tables, keyed ``<optimiser>.<index of the parameter>.<name>``, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from omnihuman_train.distributed.shards import fill
from omnihuman_train.optim import OptimizerGroup

Entries = dict[int, dict[str, Any]]


def state_of(optimizer: OptimizerGroup) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, and what else there is."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for number, part in enumerate(optimizer.optimizers):
        for index, entry in part.state_dict()["state"].items():
            for key, value in entry.items():
                name = f"{number}.{index}.{key}"
                if isinstance(value, Tensor):
                    tensors[name] = value.contiguous()
                else:
                    scalars[name] = value
    return tensors, scalars


def restore_state(optimizer: OptimizerGroup, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
    """Take over a state; whole moments are cut as their parameters are.

    Raises:
        ValueError: the state is of another optimiser.
    """
    if extra := {name.partition(".")[0] for name in tensors} - {str(i) for i in range(len(optimizer.optimizers))}:
        raise ValueError(f"it has {len(extra)} optimiser more than {optimizer.config.name}")
    for number, part in enumerate(optimizer.optimizers):
        state = part.state_dict()
        entries: Entries = {}
        for name, value in {**tensors, **scalars}.items():
            owner, index, key = name.split(".")
            if int(owner) == number:
                entries.setdefault(int(index), {})[key] = value
        _check_shapes(part, entries)
        state["state"] = _cut(part, entries)
        part.load_state_dict(state)


def parameter_of(optimizer: OptimizerGroup, name: str) -> Tensor | None:
    """The parameter whose state has the key ``name``, or None if there is no such one."""
    number, index = (int(part) for part in name.split(".")[:2])
    parameters = _parameters(optimizer.optimizers[number]) if number < len(optimizer.optimizers) else []
    return parameters[index] if index < len(parameters) else None


def _parameters(part: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter.detach() for group in part.param_groups for parameter in group["params"]]


def _check_shapes(part: torch.optim.Optimizer, entries: Entries) -> None:
    """Torch takes moments of any shape, for any parameter: they would fail, or worse not fail, at the next step."""
    parameters = _parameters(part)
    for index, entry in entries.items():
        if index >= len(parameters):
            raise ValueError(f"it has moments of more weights than the {len(parameters)} of {type(part).__name__}")
        for key, value in entry.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameters[index].shape:
                raise ValueError(
                    f"{key} of weight {index} has shape {tuple(value.shape)}, not {tuple(parameters[index].shape)}"
                )


def _cut(part: torch.optim.Optimizer, entries: Entries) -> Entries:
    """Whole moments of sharded parameters, sharded like those."""
    parameters = _parameters(part)

    def cut(parameter: Tensor, value: Any) -> Any:
        if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or isinstance(value, DTensor):
            return value
        if not value.ndim:
            return value
        shards = torch.zeros_like(parameter)
        fill(shards, value)
        return shards

    return {
        index: {key: cut(parameters[index], value) for key, value in entry.items()} for index, entry in entries.items()
    }
