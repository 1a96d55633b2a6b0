"""State of an optimiser as flat tables, keyed ``<optimiser>.<name of the parameter>.<name>``, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from omnihuman_train.distributed.shards import fill
from omnihuman_train.optim import OptimizerGroup


def state_of(optimizer: OptimizerGroup) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, and what else there is."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for number, part in enumerate(optimizer.optimizers):
        names = list(_parameters(part))
        for index, entry in part.state_dict()["state"].items():
            for key, value in entry.items():
                name = f"{number}.{names[index]}.{key}"
                if isinstance(value, Tensor):
                    tensors[name] = value.contiguous()
                else:
                    scalars[name] = value
    return tensors, scalars


def restore_state(optimizer: OptimizerGroup, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
    """Take over a state; whole moments are cut as their parameters are.

    Raises:
        ValueError: the state is of another optimiser, or of other parameters.
    """
    if extra := {name.partition(".")[0] for name in tensors} - {str(i) for i in range(len(optimizer.optimizers))}:
        raise ValueError(f"it has {len(extra)} optimiser more than {optimizer.config.name}")
    for number, part in enumerate(optimizer.optimizers):
        parameters = _parameters(part)
        numbers = {name: index for index, name in enumerate(parameters)}
        entries: dict[int, dict[str, Any]] = {}
        for name, value in {**tensors, **scalars}.items():
            owner, of, key = _keys(name)
            if int(owner) != number:
                continue
            known = _known(parameters, of)
            if known is None:
                raise ValueError(f"it has moments of {of}, which {type(part).__name__} does not train now")
            entries.setdefault(numbers[known], {})[key] = _cut(f"{key} of {known}", parameters[known], value)
        part.load_state_dict({**part.state_dict(), "state": entries})


def parameter_of(optimizer: OptimizerGroup, name: str) -> Tensor | None:
    """The parameter whose state has the key ``name``, or None if there is no such one."""
    owner, of, _ = _keys(name)
    parameters = _parameters(optimizer.optimizers[int(owner)]) if int(owner) < len(optimizer.optimizers) else {}
    known = _known(parameters, of)
    return None if known is None else parameters[known]


def _parameters(part: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Parameters by name, in the order that torch numbers them in."""
    groups = [zip(group["param_names"], group["params"], strict=True) for group in part.param_groups]
    return {name: parameter.detach() for group in groups for name, parameter in group}


def _keys(name: str) -> tuple[str, str, str]:
    """Number of the optimiser, name of the parameter, name of the value."""
    owner, _, rest = name.partition(".")
    of, _, key = rest.rpartition(".")
    return owner, of, key


def _known(parameters: dict[str, Tensor], of: str) -> str | None:
    """Name of the parameter that a state calls ``of``: its name or, in the first checkpoints, its number."""
    if of in parameters:
        return of
    return list(parameters)[int(of)] if of.isdigit() and int(of) < len(parameters) else None


def _cut(title: str, parameter: Tensor, value: Any) -> Any:
    """A value of the state of ``parameter``: whole moments of a sharded one, sharded like it.

    Torch takes moments of any shape, for any parameter: they would fail, or worse not fail, at the next step.
    """
    if not isinstance(value, Tensor) or not value.ndim:
        return value
    if value.shape != parameter.shape:
        raise ValueError(f"{title} has shape {tuple(value.shape)}, not {tuple(parameter.shape)}")
    if not isinstance(parameter, DTensor) or isinstance(value, DTensor):
        return value
    shards = torch.zeros_like(parameter)
    fill(shards, value)
    return shards
