"""Folders in which models are published: JSON settings, and weights in one safetensors file or in shards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# A larger file is a weight file or worse under the wrong name.
MAX_JSON_BYTES = 64 << 20

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Endings of weight files in a format that can carry code."""


class PublicCheckpointError(ValueError):
    """Published files are missing, incomplete, damaged, or of another model."""


def read_json(path: str | Path) -> dict[str, Any]:
    """Content of a JSON file that holds an object.

    Raises:
        PublicCheckpointError: no such file, oversized, or no JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise PublicCheckpointError(f"{path}: no such file")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise PublicCheckpointError(f"{path}: larger than {MAX_JSON_BYTES} bytes, this is no {path.name}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise PublicCheckpointError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(content, dict):
        raise PublicCheckpointError(f"{path}: must hold a JSON object")
    return content


def settings(folder: Path, name: str = "config.json") -> Mapping[str, Any]:
    """Content of a settings file in a folder; empty where there is none.

    Raises:
        PublicCheckpointError: it is damaged.
    """
    path = folder / name
    return read_json(path) if path.is_file() else {}


def refuse_pickles(source: Path) -> None:
    """Say what to do where a file, or a folder without safetensors, holds pickled weights.

    Raises:
        PublicCheckpointError: it does.
    """
    said = _pickle(source)
    if said:
        raise PublicCheckpointError(said)


def _pickle(source: Path) -> str:
    """What to say of the first pickle of a file or folder; empty where there is none."""
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    pickles = [file for file in files if file.suffix in PICKLES]
    return (
        f"{pickles[0]} is a pickle, a format that can carry code; look for safetensors, or run "
        "omnihuman-infer convert --trust-pickle if you trust who made it"
        if pickles
        else ""
    )


def weight_files(directory: str | Path, name: str) -> list[Path]:
    """The safetensors files of a folder: the one of this name, or the shards that its index lists.

    Args:
        directory: The folder.
        name: ``diffusion_pytorch_model.safetensors`` of diffusers, ``model.safetensors`` of transformers; the index is
            that name with ``.index.json`` behind it.

    Raises:
        PublicCheckpointError: no weights, a damaged index, one that points outside the folder, or a missing shard.
    """
    root = Path(directory)
    index = root / f"{name}.index.json"
    if not index.is_file():
        if not (root / name).is_file():
            what = _pickle(root) if root.is_dir() else ""
            raise PublicCheckpointError(
                f"{root}: has neither {name} nor {index.name}; {what or 'download the folder again'}"
            )
        return [root / name]
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise PublicCheckpointError(f"{index}: weight_map must map tensor names to files")
    files = []
    for shard in sorted(set(shards.values())):
        # Names, not targets: download caches keep the files of a folder as links to another place.
        if Path(shard).is_absolute() or ".." in Path(shard).parts:
            raise PublicCheckpointError(f"{index}: {shard!r} points outside the directory")
        if not shard.endswith(".safetensors"):
            raise PublicCheckpointError(f"{index}: {shard!r} is no safetensors file")
        if not (root / shard).is_file():
            count = sum(other == shard for other in shards.values())
            raise PublicCheckpointError(
                f"{root / shard}: shard is missing, it holds {count} tensors; download it again"
            )
        files.append(root / shard)
    return files
