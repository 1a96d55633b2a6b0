"""Checkpoints of a run: safetensors and JSON, written to the side and renamed, so that each one is whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omnihuman_core.checkpoint import CheckpointError, load_safetensors, save_safetensors
from omnihuman_train.ema import Ema
from omnihuman_train.optim import OptimizerGroup

_PREFIX = "step_"


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, ema: Ema, optimizer: OptimizerGroup, *, config: str, keep: int = 2
) -> Path:
    """Write ``folder/step_XXXXXXXX`` and drop all but the newest ``keep`` checkpoints.

    Args:
        folder: Folder of the run's checkpoints.
        step: Optimiser steps done.
        model: The trained module.
        ema: Its average.
        optimizer: Its optimiser.
        config: The resolved configuration, as TOML.
        keep: Checkpoints to keep.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; the checkpoints before stay whole.
    """
    target = folder / f"{_PREFIX}{step:08d}"
    partial = folder / f".partial_{target.name}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        save_safetensors(model.state_dict(), partial / "model.safetensors")
        save_safetensors(ema.shadow, partial / "ema.safetensors")
        tensors, scalars = _flatten(optimizer)
        save_safetensors(tensors, partial / "optimizer.safetensors")
        (partial / "config.toml").write_text(config)
        (partial / "state.json").write_text(json.dumps({"step": step, "optimizer": scalars}))
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints in ``folder``, oldest first."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if (path / "state.json").is_file())


def load_checkpoint(path: Path, model: nn.Module, ema: Ema, optimizer: OptimizerGroup) -> int:
    """Restore a run; returns the number of steps done.

    Raises:
        ValueError: a file is broken, or the checkpoint belongs to another architecture or another optimiser.
    """
    try:
        state = json.loads((path / "state.json").read_text())
    except ValueError as error:
        raise ValueError(f"{path / 'state.json'}: broken ({error}); delete this checkpoint and run again") from error
    try:
        model.load_state_dict(load_safetensors(path / "model.safetensors"))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"{path}: the checkpoint is of another architecture: {reason}") from error
    ema.load(load_safetensors(path / "ema.safetensors"))
    try:
        _restore(optimizer, load_safetensors(path / "optimizer.safetensors"), state["optimizer"])
    except ValueError as error:
        raise ValueError(f"{path}: the checkpoint is of another optimiser ({error}); use another --out") from error
    return int(state["step"])


def _flatten(optimizer: OptimizerGroup) -> tuple[dict[str, Tensor], dict[str, Any]]:
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


def _restore(optimizer: OptimizerGroup, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
    if extra := {name.partition(".")[0] for name in tensors} - {str(i) for i in range(len(optimizer.optimizers))}:
        raise ValueError(f"it has {len(extra)} optimiser more than {optimizer.config.name}")
    for number, part in enumerate(optimizer.optimizers):
        whole = part.state_dict()
        state: dict[int, dict[str, Any]] = {}
        for name, value in {**tensors, **scalars}.items():
            owner, index, key = name.split(".")
            if int(owner) == number:
                state.setdefault(int(index), {})[key] = value
        _check_shapes(part, state)
        whole["state"] = state
        part.load_state_dict(whole)


def _check_shapes(part: torch.optim.Optimizer, state: dict[int, dict[str, Any]]) -> None:
    """Torch takes moments of any shape, for any parameter: they would fail, or worse not fail, at the next step."""
    parameters = [parameter for group in part.param_groups for parameter in group["params"]]
    for index, entry in state.items():
        if index >= len(parameters):
            raise ValueError(f"it has moments of more weights than the {len(parameters)} of {type(part).__name__}")
        for key, value in entry.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameters[index].shape:
                raise ValueError(
                    f"{key} of weight {index} has shape {tuple(value.shape)}, not {tuple(parameters[index].shape)}"
                )


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """Random numbers of step ``step``: a function of ``(seed, step, stream)``, so that a resumed run draws the same."""
    generator = torch.Generator()
    generator.manual_seed((seed * 1_000_003 + step) * 31 + stream)
    return generator
