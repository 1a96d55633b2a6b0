"""Writes a model directory, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from omnihuman_core.checkpoint import save_safetensors
from omnihuman_core.config import to_toml
from omnihuman_core.model_dir.index import (
    COMPONENTS,
    CONFIG,
    FORMAT,
    INDEX,
    WEIGHTS,
    ComponentEntry,
    GenerationSettings,
    ModelDirError,
    ModelIndex,
    component_entry,
)
from omnihuman_core.plugins import plugin


def save_model(
    directory: str | Path,
    *,
    name: str,
    version: str,
    generation: GenerationSettings,
    components: Mapping[str, tuple[str, Any]],
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write a model directory, whole or not at all.

    Args:
        directory: Made, or replaced if it is a model directory already.
        name: Name of the model.
        version: Version of the model.
        generation: How to use it.
        components: Plugin name and module by component name.
        dtype: Dtype of the floating tensors in the files.

    Raises:
        ValueError: an unknown component, a module that is not what its plugin makes, or a directory that holds
            something else.
    """
    directory = Path(directory)
    if (
        directory.exists()
        and not (directory / INDEX).is_file()
        and (not directory.is_dir() or any(directory.iterdir()))
    ):
        raise ModelDirError(f"{directory}: exists and is no model directory; choose another one or empty it")
    entries = {component: _entry(component, *named) for component, named in components.items()}
    index = ModelIndex(format=FORMAT, name=name, version=version, generation=generation, components=entries)
    with replacing(directory) as new:
        for component, (_, module) in components.items():
            _save(new / component, module, dtype)
        (new / INDEX).write_text(to_toml(index), encoding="utf-8")


@contextmanager
def replacing(directory: Path, *, keep: bool = False) -> Iterator[Path]:
    """A folder to fill, which takes the place of a model directory at the end of the ``with`` block.

    After an error or an interrupt, wherever it comes, the directory is as it was.

    Args:
        directory: Made, with its parents, if there is none.
        keep: Keep what is in the directory under names that the new folder does not have.

    Raises:
        ModelDirError: the directory cannot be written.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".omnihuman-", suffix=".part", dir=directory.parent))
    except OSError as error:
        raise ModelDirError(f"{directory}: cannot be written ({error.strerror})") from error
    new, old = staging / "new", staging / "old"
    done = False
    try:
        new.mkdir()
        old.mkdir()
        yield new
        moves = [(new, directory)]
        if keep and directory.exists():
            # The index comes last: until then it names what was there.
            names = sorted((path.name for path in new.iterdir()), key=lambda name: name == INDEX)
            moves = [(new / name, directory / name) for name in names]
        _move_all(moves, old)
        done = True
    except OSError as error:
        raise ModelDirError(f"{directory}: cannot be written ({error.strerror})") from error
    finally:
        # What could not even be moved back is the only copy of the old model.
        if done or not any(old.glob("*")):
            shutil.rmtree(staging, ignore_errors=True)


def _move_all(moves: Sequence[tuple[Path, Path]], old: Path) -> None:
    """Move each first path to the second, all or none; what was there goes to ``old``."""
    try:
        for source, target in moves:
            if os.path.lexists(target):
                os.replace(target, old / target.name)
            os.replace(source, target)
    except BaseException:
        # The disk says what was moved: an interrupt may come between a move and any note of it.
        for source, target in moves:
            if not os.path.lexists(source):
                os.replace(target, source)
            if os.path.lexists(old / target.name):
                os.replace(old / target.name, target)
        raise


def _entry(component: str, plugin_name: str, module: Any) -> ComponentEntry:
    if component not in COMPONENTS:
        raise ModelDirError(f"unknown component {component!r}; known are {', '.join(COMPONENTS)}")
    made_by = plugin(COMPONENTS[component], plugin_name)
    if not isinstance(module, made_by):
        raise ModelDirError(
            f"components.{component}: plugin {plugin_name!r} makes {made_by.__name__}, got {type(module).__name__}"
        )
    return component_entry(component, plugin_name)


def _save(folder: Path, module: Any, dtype: torch.dtype) -> None:
    folder.mkdir()
    (folder / CONFIG).write_text(to_toml(module.config), encoding="utf-8")
    state = module.state_dict() if isinstance(module, nn.Module) else {}
    if state:
        cast_state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
        save_safetensors(cast_state, folder / WEIGHTS, {"format": "pt"})
