"""Checkpoints read back, whole ones and those of shards alike, into any number of processes."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omnihuman_core.checkpoint import CheckpointError, load_safetensors
from omnihuman_core.config import read_toml
from omnihuman_train.distributed.checkpoint import compare, layout, read
from omnihuman_train.distributed.mesh import World
from omnihuman_train.distributed.shards import fill
from omnihuman_train.ema import Ema
from omnihuman_train.optim import OptimizerGroup
from omnihuman_train.optimizer_state import parameter_of, restore_state

PREFIX = "step_"
SHARDS = "shards"
_AGAIN, _ELSEWHERE = "delete this checkpoint and run again", "use another --out"
_ALONE = World(device=torch.device("cpu"))


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints in ``folder``, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if (path / "state.json").is_file())


def load_checkpoint(path: Path, model: nn.Module, ema: Ema, optimizer: OptimizerGroup, world: World = _ALONE) -> int:
    """Restore a run; returns the number of steps done.

    Args:
        path: A checkpoint that one process or several have written.
        model: Filled in place, as are the others: whole, or sharded over any number of processes.
        ema: Its average.
        optimizer: Its optimiser.
        world: Processes of the run; all of them call this.

    Raises:
        ValueError: a file is broken, or the checkpoint belongs to another architecture or another optimiser.
    """
    state = _state(path)
    _check_shards(path, state.get("files", {}))
    load = _load_shards if (path / SHARDS).is_dir() else _load_whole
    moments = load(path, model, ema, optimizer, world)
    numbers = {name: torch.tensor(value) for name, value in state.get("numbers", {}).items()}
    try:
        restore_state(optimizer, {**moments, **numbers}, state["optimizer"])
    except ValueError as error:
        raise ValueError(f"{path}: the checkpoint is of another optimiser ({error}); {_ELSEWHERE}") from error
    return int(state["step"])


def check_length(path: Path, steps: int) -> None:
    """Check that a checkpoint is not of a longer run than this one.

    Args:
        path: The checkpoint.
        steps: Steps of the whole run.

    Raises:
        ValueError: it has more steps: its weights would be given out as those of a shorter training.
    """
    if (done := int(_state(path)["step"])) > steps:
        raise ValueError(f"{path}: has {done} steps, but steps is {steps}; set it to {done} or more, or {_ELSEWHERE}")


def changed_settings(path: Path, resolved: str) -> list[str]:
    """Dotted names of the settings that differ between those saved with a checkpoint and those of ``resolved`` (TOML).

    Raises:
        ValueError: the saved ones are broken.
    """
    saved, now = _settings(read_toml(path / "config.toml")), _settings(tomllib.loads(resolved))
    return sorted(name for name in saved.keys() | now.keys() if saved.get(name) != now.get(name))


def _settings(table: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Values of a table and of the tables in it, by dotted names."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{path}{key}"
        found.update(_settings(value, f"{name}.") if isinstance(value, dict) else {name: value})
    return found


def _state(path: Path) -> dict[str, Any]:
    try:
        state: Any = json.loads((path / "state.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path / 'state.json'}: broken ({error}); {_AGAIN}") from error
    if not isinstance(state, dict) or not isinstance(state.get("step"), int) or "optimizer" not in state:
        raise ValueError(f"{path / 'state.json'}: broken (no step, or no state of an optimiser); {_AGAIN}")
    return dict(state)


def _check_shards(path: Path, files: dict[str, int]) -> None:
    """Check that the shards are those that were written, by name and size: torch leaves out what it does not find."""
    for name, size in files.items():
        file = path / SHARDS / name
        if not file.is_file() or file.stat().st_size != size:
            raise ValueError(f"{file}: missing, or broken (it had {size} bytes); {_AGAIN}")


def _load_whole(path: Path, model: nn.Module, ema: Ema, optimizer: OptimizerGroup, world: World) -> dict[str, Tensor]:
    """Fill model and average from whole tensors; returns those of the optimiser."""
    weights = _tensors(path / "model.safetensors")
    if world.size == 1:
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise ValueError(f"{path}: the checkpoint is of another architecture: {reason}; {_ELSEWHERE}") from error
    else:
        targets = model.state_dict()
        _check_architecture(path, {name: value.shape for name, value in weights.items()}, targets)
        for name, target in targets.items():
            fill(target, weights[name])
    averages = _tensors(path / "ema.safetensors")
    _check_averages(path, averages.keys(), ema)
    ema.load(averages)
    return _tensors(path / "optimizer.safetensors")


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_safetensors(file)
    except CheckpointError as error:
        raise ValueError(f"{error}; {_AGAIN}") from error


def _load_shards(path: Path, model: nn.Module, ema: Ema, optimizer: OptimizerGroup, world: World) -> dict[str, Tensor]:
    """Fill model and average from shards; returns what the optimiser needs, sharded as its parameters are."""
    found = layout(path / SHARDS)
    weights = prefixed(model=model.state_dict())
    _check_architecture(path, {key: size for key, size in found.items() if key.startswith("model.")}, weights)
    _check_averages(path, {key.removeprefix("ema.") for key in found if key.startswith("ema.")}, ema)
    moments = {}
    for name in (key.removeprefix("optimizer.") for key in found if key.startswith("optimizer.")):
        parameter = parameter_of(optimizer, name)
        size = found[f"optimizer.{name}"]
        # Where the state is not this optimiser's, its shape says so to the one who takes it over.
        known = parameter is not None and parameter.shape == size
        moments[name] = torch.zeros_like(parameter) if known and parameter is not None else torch.zeros(size)
    read({**weights, **prefixed(ema=ema.shadow, optimizer=moments)}, path / SHARDS, world)
    return moments


def _check_architecture(path: Path, found: dict[str, torch.Size], targets: dict[str, Tensor]) -> None:
    report = compare(found, targets)
    if not report.exact:
        raise ValueError(f"{path}: the checkpoint is of another architecture: {report}; {_ELSEWHERE}")


def _check_averages(path: Path, found: Set[str], ema: Ema) -> None:
    """Check that all trained weights were trained before; averages of others, now frozen, are passed over."""
    if missing := sorted(ema.shadow.keys() - found):
        raise ValueError(
            f"{path}: the checkpoint is of another training: {missing[0]} was frozen in it ({len(missing)} such "
            f"weights are trained now); {_ELSEWHERE}"
        )


def prefixed(**parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of several parts as one table, each name behind that of its part."""
    return {f"{prefix}.{name}": value.detach() for prefix, part in parts.items() for name, value in part.items()}
