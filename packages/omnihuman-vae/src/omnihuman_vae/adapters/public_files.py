"""Reading the folders in which VAEs are published: ``config.json`` and safetensors, in one file or in shards."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from omnihuman_core import importing

WEIGHTS = "diffusion_pytorch_model.safetensors"

# A folder is no published VAE, is incomplete, or holds another model.
PublicFilesError = importing.PublicCheckpointError


def read_config(directory: str | Path, *, classes: Collection[str]) -> dict[str, Any]:
    """Read ``config.json`` and check which model it describes.

    Args:
        directory: The folder of the VAE alone, not of the whole pipeline.
        classes: Values of ``_class_name`` that are accepted.

    Raises:
        PublicFilesError: no such folder or file, not JSON, or the folder of another model.
    """
    root = Path(directory)
    if not root.is_dir():
        raise PublicFilesError(f"{root}: no such directory")
    path = root / "config.json"
    if not path.is_file():
        hint = ""
        if (root / "vae" / "config.json").is_file():
            hint = f"; this looks like a whole pipeline, point at {root / 'vae'}"
        raise PublicFilesError(f"{path}: missing, this is no folder of a published VAE{hint}")
    config = importing.read_json(path)
    name = config.get("_class_name")
    if name not in classes:
        raise PublicFilesError(f"{path}: _class_name is {name!r}, expected {' or '.join(sorted(classes))}")
    return config


def take(
    config: Mapping[str, Any], known: Mapping[str, Any], *, fixed: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Values of ``known`` keys, with their defaults where absent.

    Args:
        config: Content of ``config.json``.
        known: Default by key.
        fixed: Values that other keys must have, where present.
        where: Put before error messages.

    Raises:
        PublicFilesError: a fixed key has another value, or a key is unknown.
    """
    for key, value in config.items():
        if key.startswith("_"):
            continue
        if key in fixed:
            found = tuple(value) if isinstance(value, list) else value
            if found != fixed[key]:
                raise PublicFilesError(
                    f"{where}: {key} is {value!r}, the native class supports {fixed[key]!r} only; "
                    "the plugin 'diffusers' loads other variants"
                )
        elif key not in known:
            raise PublicFilesError(f"{where}: unknown key {key!r}; the plugin 'diffusers' loads other variants")
    return {key: config.get(key, default) for key, default in known.items()}


def weight_files(directory: str | Path) -> list[Path]:
    """The safetensors files of a folder; see :func:`omnihuman_core.importing.weight_files`."""
    return importing.weight_files(directory, WEIGHTS)
