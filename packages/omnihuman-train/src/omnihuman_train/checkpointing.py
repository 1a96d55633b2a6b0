"""Checkpoints of a run: safetensors and JSON, written to the side and renamed, so that each one is whole.

Whole weights are written by one process; of sharded ones, each writes what it holds. Both kinds go on in any number of
processes.
"""

from __future__ import annotations

import json
import logging
import shutil
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from omnihuman_core.checkpoint import CheckpointError, save_safetensors
from omnihuman_train.distributed.checkpoint import start_writing
from omnihuman_train.distributed.mesh import World
from omnihuman_train.ema import Ema
from omnihuman_train.optim import OptimizerGroup
from omnihuman_train.optimizer_state import state_of
from omnihuman_train.resuming import (
    PREFIX,
    SHARDS,
    changed_settings,
    check_length,
    checkpoints,
    load_checkpoint,
    prefixed,
)

_LOG = logging.getLogger(__name__)
# In front of the name of a checkpoint that is being written or deleted.
_PARTIAL = ".partial_"


@dataclass(frozen=True)
class _Writing:
    """A checkpoint that threads are writing."""

    future: Future[Any]
    partial: Path
    target: Path
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run; the newest ones are kept. All processes call every method at the same step.

    Args:
        folder: Folder of the run's checkpoints.
        world: Processes of the run. Several write in threads, while training goes on.
        config: The resolved configuration, as TOML.
        steps: Steps of the whole run.
        keep: Checkpoints to keep.
    """

    def __init__(self, folder: Path, world: World, *, config: str, steps: int, keep: int = 2) -> None:
        self.folder, self._world, self._config, self._steps, self._keep = folder, world, config, steps, keep
        self._writing: _Writing | None = None

    def restore(self, model: nn.Module, ema: Ema, optimizer: OptimizerGroup) -> int:
        """Go on from the newest checkpoint, if there is one; returns the number of steps done.

        Settings that have changed since it was saved are logged.

        Raises:
            ValueError: as :func:`load_checkpoint`, or it has more steps than the run.
        """
        if self._world.main:
            # What a run left that was killed while it wrote one: of a large model, hundreds of GB.
            for half in self.folder.glob(f"{_PARTIAL}*"):
                shutil.rmtree(half, ignore_errors=True)
        # What the first process sees counts: a file system may show a new folder later elsewhere.
        done = self._world.gather([path.name for path in checkpoints(self.folder)])[0]
        if not done:
            return 0
        path = self.folder / done[-1]
        check_length(path, self._steps)
        if self._world.main and (names := changed_settings(path, self._config)):
            _LOG.warning(
                "%s: saved under other settings: %s; the run goes on with those of now", path, ", ".join(names)
            )
        return load_checkpoint(path, model, ema, optimizer, self._world)

    def save(self, step: int, model: nn.Module, ema: Ema, optimizer: OptimizerGroup) -> None:
        """Write a checkpoint of ``step`` steps done; of sharded weights, start to.

        Raises:
            CheckpointError: this one or the one before cannot be written; those before that stay whole.
        """
        if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
            self._save_whole(step, model, ema, optimizer)
            return
        self.finish()
        target = self.folder / f"{PREFIX}{step:08d}"
        partial = self.folder / f"{_PARTIAL}{target.name}"
        if self._world.main:
            shutil.rmtree(partial, ignore_errors=True)
            try:
                (partial / SHARDS).mkdir(parents=True)
            except OSError as error:
                raise CheckpointError(f"{target}: cannot be written ({error.strerror})") from error
        self._world.wait()
        moments, scalars = state_of(optimizer)
        numbers = {name: value.item() for name, value in moments.items() if not value.ndim}
        tensors = prefixed(model=model.state_dict(), ema=ema.shadow)
        tensors |= prefixed(optimizer={name: value for name, value in moments.items() if value.ndim})
        state = {"step": step, "optimizer": scalars, "numbers": numbers}
        future = start_writing(tensors, partial / SHARDS, self._world)
        self._writing = _Writing(future, partial, target, state)

    def _save_whole(self, step: int, model: nn.Module, ema: Ema, optimizer: OptimizerGroup) -> None:
        """Of weights that every process holds whole, the first one writes; all learn whether it could."""
        failed: CheckpointError | None = None
        if self._world.main:
            try:
                save_checkpoint(self.folder, step, model, ema, optimizer, config=self._config, keep=self._keep)
            except CheckpointError as error:
                failed = error
        if (told := self._world.gather(failed and str(failed))[0]) is not None:
            raise CheckpointError(told) from failed

    @property
    def written(self) -> bool:
        """Whether this process has written its part of a checkpoint, which :meth:`finish` would give its name."""
        return self._writing is not None and self._writing.future.done()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, if there is one.

        Raises:
            CheckpointError: the disk is full or the folder cannot be written; the checkpoints before stay whole.
        """
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            writing.future.result()
            # Asked of who wrote them: elsewhere a file system may show them later.
            files = {name: size for sizes in self._world.gather(self._written_files(writing)) for name, size in sizes}
            if self._world.main:
                _complete(writing.partial, writing.target, self._config, {**writing.state, "files": files})
        except (OSError, CheckpointException) as error:
            reason = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
            raise CheckpointError(f"{writing.target}: cannot be written ({reason})") from error
        finally:
            if self._world.main:
                shutil.rmtree(writing.partial, ignore_errors=True)
        if self._world.main:
            _drop_old(self.folder, self._keep)

    def _written_files(self, writing: _Writing) -> list[tuple[str, int]]:
        """Names and sizes of the files that this process has written."""
        mine = (writing.partial / SHARDS).glob(f"shard-{self._world.rank + 1:05d}-*")
        return [(path.name, path.stat().st_size) for path in mine]


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
    target = folder / f"{PREFIX}{step:08d}"
    partial = folder / f"{_PARTIAL}{target.name}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        save_safetensors(model.state_dict(), partial / "model.safetensors")
        save_safetensors(ema.shadow, partial / "ema.safetensors")
        tensors, scalars = state_of(optimizer)
        save_safetensors(tensors, partial / "optimizer.safetensors")
        _complete(partial, target, config, {"step": step, "optimizer": scalars})
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _drop_old(folder, keep)
    return target


def _complete(partial: Path, target: Path, config: str, state: dict[str, Any]) -> None:
    (partial / "config.toml").write_text(config)
    (partial / "state.json").write_text(json.dumps(state))
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def _drop_old(folder: Path, keep: int) -> None:
    for old in checkpoints(folder)[:-keep]:
        # Half deleted it would pass for a whole one.
        gone = folder / f"{_PARTIAL}{old.name}"
        try:
            old.rename(gone)
            shutil.rmtree(gone)
        except OSError as error:
            # A file that is still open somewhere, on NFS. The new one is whole; the next start tries again.
            _LOG.warning("%s: cannot be deleted (%s)", old, error.strerror)


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """Random numbers of step ``step``: a function of ``(seed, step, stream)``, so that a resumed run draws the same."""
    generator = torch.Generator()
    generator.manual_seed((seed * 1_000_003 + step) * 31 + stream)
    return generator
