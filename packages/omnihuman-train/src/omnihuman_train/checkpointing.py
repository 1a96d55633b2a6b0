"""Checkpoints of a run: safetensors and JSON, written to the side and renamed, so that each one is whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

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
    """
    target = folder / f"{_PREFIX}{step:08d}"
    partial = folder / f".partial_{target.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_file({k: v.detach().contiguous() for k, v in model.state_dict().items()}, partial / "model.safetensors")
        save_file(ema.shadow, partial / "ema.safetensors")
        tensors, scalars = _flatten(optimizer)
        save_file(tensors, partial / "optimizer.safetensors")
        (partial / "config.toml").write_text(config)
        (partial / "state.json").write_text(json.dumps({"step": step, "optimizer": scalars}))
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints in ``folder``, oldest first."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if (path / "state.json").is_file())


def load_checkpoint(path: Path, model: nn.Module, ema: Ema, optimizer: OptimizerGroup) -> int:
    """Restore a run; returns the number of steps done.

    Raises:
        ValueError: the checkpoint belongs to another architecture.
    """
    state = json.loads((path / "state.json").read_text())
    try:
        model.load_state_dict(load_file(path / "model.safetensors"))
    except RuntimeError as error:
        raise ValueError(f"{path}: the checkpoint is of another architecture: {str(error).splitlines()[-1]}") from error
    ema.load(load_file(path / "ema.safetensors"))
    _restore(optimizer, load_file(path / "optimizer.safetensors"), state["optimizer"])
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
    for number, part in enumerate(optimizer.optimizers):
        whole = part.state_dict()
        state: dict[int, dict[str, Any]] = {}
        for name, value in {**tensors, **scalars}.items():
            owner, index, key = name.split(".")
            if int(owner) == number:
                state.setdefault(int(index), {})[key] = value
        whole["state"] = state
        part.load_state_dict(whole)


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """Random numbers of step ``step``: a function of ``(seed, step, stream)``, so that a resumed run draws the same."""
    generator = torch.Generator()
    generator.manual_seed((seed * 1_000_003 + step) * 31 + stream)
    return generator
