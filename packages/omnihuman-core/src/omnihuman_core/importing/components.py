"""Components read from public files or from a model directory, and written to a model directory."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch

from omnihuman_core.config import from_table, read_toml, to_toml
from omnihuman_core.contracts.importer import ImportedComponent
from omnihuman_core.importing.files import PublicCheckpointError, refuse_pickles
from omnihuman_core.importing.streaming import stored, write_stream
from omnihuman_core.model_dir import (
    COMPONENTS,
    CONFIG,
    FORMAT,
    INDEX,
    WEIGHTS,
    GenerationSettings,
    ModelDirError,
    ModelIndex,
    component_entry,
    load_component,
    read_index,
    replacing,
)
from omnihuman_core.plugins import installed, plugin

GENERATION = GenerationSettings(
    segment_frames=129,
    motion_frames=5,
    area=480 * 832,
    max_aspect=16 / 9,
    size_multiple=32,
    num_steps=50,
    guidance_scale=6.5,
    guidance_schedule="constant",
    guidance_end_scale=6.5,
    sigma_shift=7.0,
    sampler="euler",
    default_prompt="A person is talking.",
)
"""For a model that starts from public weights and does not say how it is used: public bases at 480p, the paper's scale.

Such a base has not learnt "no text" as we mean it, a state of its own: a neutral prompt stands in.
"""


def read_public(source: str | Path, *, only: Sequence[str] = ()) -> list[ImportedComponent]:
    """Components that a downloaded file or directory holds, by every installed importer.

    Args:
        source: A model's folder, a whole pipeline, or one weight file.
        only: Names of the components that are wanted; empty for all.

    Raises:
        ValueError: nothing known is there, something is damaged, or a wanted component is absent; one line.
    """
    source = Path(source)
    if not source.exists():
        raise PublicCheckpointError(f"{source}: no such file or directory")
    unknown = [name for name in only if name not in COMPONENTS]
    if unknown:
        raise PublicCheckpointError(f"unknown component {unknown[0]!r}; known are {', '.join(COMPONENTS)}")
    names = sorted(installed("checkpoint_importer"))
    found = [part for name in names for part in plugin("checkpoint_importer", name)(source)]
    if not found:
        refuse_pickles(source)
        raise PublicCheckpointError(
            f"{source}: holds no checkpoint that is known; installed importers are {', '.join(names) or 'none'}"
        )
    absent = [name for name in only if name not in {part.component for part in found}]
    if absent:
        held = ", ".join(part.component for part in found)
        raise PublicCheckpointError(f"{source}: holds no {absent[0]}; it holds {held}")
    return [part for part in found if not only or part.component in only]


def read_model_dir(directory: str | Path) -> list[ImportedComponent]:
    """Components of a model directory of ours, so that they can be changed and written to another one.

    Raises:
        ValueError: as :func:`~omnihuman_core.model_dir.read_index`, or a damaged file.
    """
    parts = []
    for name, entry in read_index(directory).components.items():
        folder = Path(directory) / name
        config = from_table(plugin(COMPONENTS[name], entry.plugin).config_class, read_toml(folder / CONFIG))
        like, tensors = stored(folder / WEIGHTS) if (folder / WEIGHTS).is_file() else ({}, lambda: iter(()))
        files = {
            str(file.relative_to(folder)): file
            for file in sorted(folder.rglob("*"))
            if file.is_file() and file not in (folder / CONFIG, folder / WEIGHTS)
        }
        parts.append(
            ImportedComponent(
                component=name, plugin=entry.plugin, config=config, like=like, tensors=tensors, files=files
            )
        )
    return parts


def write_components(
    directory: str | Path,
    components: Sequence[ImportedComponent],
    *,
    name: str,
    version: str = "0",
    generation: GenerationSettings | None = None,
    dtype: torch.dtype | None = None,
) -> ModelIndex:
    """Write components to a new model directory, or add them to one that exists; all of them or none.

    A component of the same name is replaced. Components that come with files of their own are built once from what was
    written, before anything takes its place: a damaged file among them is found here.

    Args:
        directory: Made if needed.
        components: At most one of each name.
        name: Name of a new model; one that exists keeps its own.
        version: Version of a new model.
        generation: How a new model is used; by default :data:`GENERATION` with what its components say.
        dtype: Dtype of floating weights; None keeps theirs.

    Raises:
        ValueError: two components of one name, a directory that holds something else, or weights that do not fit.
    """
    directory = Path(directory)
    names = [part.component for part in components]
    twice = [part for part in names if names.count(part) > 1]
    if twice:
        raise PublicCheckpointError(f"the source holds {twice[0]} more than once; point at one of them")
    if generation is None:
        said = {key: value for part in components for key, value in part.generation.items()}
        if unknown := sorted(said.keys() - {f.name for f in fields(GENERATION)}):
            raise PublicCheckpointError(f"an importer says generation.{unknown[0]}, which no model has; update it")
        generation = replace(GENERATION, **said)
    index = _old_index(directory) or ModelIndex(
        format=FORMAT, name=name, version=version, generation=generation, components={}
    )
    for part in components:
        plugin(COMPONENTS[part.component], part.plugin)
        index.components[part.component] = component_entry(part.component, part.plugin)
    with replacing(directory, keep=True) as new:
        for part in components:
            _write(new / part.component, part, dtype)
        fresh = ModelIndex(
            format=FORMAT,
            name=index.name,
            version=index.version,
            generation=index.generation,
            components={part: index.components[part] for part in names},
        )
        (new / INDEX).write_text(to_toml(fresh), encoding="utf-8")
        for part in components:
            if part.files:
                _check_files(new, part)
        (new / INDEX).write_text(to_toml(index), encoding="utf-8")
    return index


def _old_index(directory: Path) -> ModelIndex | None:
    if (directory / INDEX).is_file():
        return read_index(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ModelDirError(f"{directory}: exists and is no model directory; choose another one or empty it")
    return None


def _write(folder: Path, part: ImportedComponent, dtype: torch.dtype | None) -> None:
    folder.mkdir()
    (folder / CONFIG).write_text(to_toml(part.config), encoding="utf-8")
    for name, file in part.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / name)
    if part.like:
        write_stream(folder / WEIGHTS, part.like, part.tensors(), dtype=dtype)


def _check_files(new: Path, part: ImportedComponent) -> None:
    """Build a component from the files that came with it; errors name the files they were copied from."""
    try:
        load_component(new, part.component)
    except ValueError as error:
        message = str(error)
        for name, file in part.files.items():
            message = message.replace(str((new / part.component / name).parent), str(file.parent))
        raise PublicCheckpointError(message) from None
