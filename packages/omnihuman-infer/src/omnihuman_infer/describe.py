"""What a model directory holds, as text."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from omnihuman_core.model_dir import read_index
from omnihuman_infer.request import RequestError


def describe(directory: Path) -> str:
    """Name, generation settings and components of a model directory, one a line; no weight is read.

    Raises:
        RequestError: the directory is no model.
    """
    try:
        index = read_index(directory)
    except ValueError as error:
        raise RequestError(f"model: {error}") from None
    lines = [f"{index.name} {index.version}  ({directory})", "", "components"]
    for name, entry in index.components.items():
        size = sum(file.stat().st_size for file in (directory / name).glob("*.safetensors"))
        weights = f"{size / 1e6:.1f} MB" if size else "no weights"
        lines.append(f"  {name:16s} {entry.plugin:14s} {entry.package} {entry.package_version}, {weights}")
    lines += ["", "generation"]
    for field in dataclasses.fields(index.generation):
        lines.append(f"  {field.name:20s} {getattr(index.generation, field.name)}")
    return "\n".join(lines)
