"""Reading the folders in which VAEs are published: ``config.json`` and safetensors, in one file or in shards."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = WEIGHTS + ".index.json"

# A larger file is a weight file or worse under the wrong name.
MAX_JSON_BYTES = 16 << 20


class PublicFilesError(ValueError):
    """A folder is no published VAE, is incomplete, or holds another model."""


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
    config = _read_json(path)
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
    """The safetensors files of a folder: one, or the shards that an index lists.

    Raises:
        PublicFilesError: no weights, pickled weights only, an index that is damaged or points outside the folder, or a
            missing shard.
    """
    root = Path(directory)
    index = root / INDEX
    if not index.is_file():
        if (root / WEIGHTS).is_file():
            return [root / WEIGHTS]
        pickles = [path.name for path in sorted(root.glob("*")) if path.suffix in (".bin", ".pt", ".pth", ".ckpt")]
        hint = f"; {pickles[0]} is a pickle, convert it first" if pickles else ""
        raise PublicFilesError(f"{root}: has neither {WEIGHTS} nor {INDEX}{hint}")
    shards = _read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise PublicFilesError(f"{index}: weight_map must map tensor names to files")
    files = []
    for name in sorted(set(shards.values())):
        path = root / name
        # Names, not targets: download caches keep the files of a folder as links to another place.
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise PublicFilesError(f"{index}: {name!r} points outside the directory")
        if not path.is_file():
            missing = sum(shard == name for shard in shards.values())
            raise PublicFilesError(f"{path}: shard is missing, it holds {missing} tensors; download it again")
        files.append(path)
    return files


def _read_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise PublicFilesError(f"{path}: larger than {MAX_JSON_BYTES} bytes, this is no {path.name}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PublicFilesError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(content, dict):
        raise PublicFilesError(f"{path}: must hold a JSON object")
    return content
