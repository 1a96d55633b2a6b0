"""Shards of equal-shaped samples on disk: one safetensors file of stacked tensors each, captions in its metadata.

A shard appears whole or not at all, and a shard that is there is not made again: writing is resumable and idempotent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from omnihuman_core.checkpoint import save_safetensors

Sample = Mapping[str, Tensor | str]


def write_shards(
    folder: Path, make: Callable[[int], Sample], count: int, *, size: int, progress: Callable[[int], None]
) -> None:
    """Write samples ``0 .. count - 1`` into ``folder``.

    Args:
        folder: Target; created when missing.
        make: Gives sample ``i``; all samples have the same keys and shapes. Strings go to the metadata.
        count: Samples in all.
        size: Samples per shard.
        progress: Called with the number of samples that became available.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, count, size):
        stop = min(start + size, count)
        path = folder / f"{start:06d}-{stop:06d}.safetensors"
        if not path.exists():
            write_shard(path, [make(index) for index in range(start, stop)])
        progress(stop - start)


def write_shard(path: Path, samples: Sequence[Sample]) -> None:
    """Write one shard, whole or not at all.

    Raises:
        CheckpointError: the file cannot be written.
    """
    tensors = {
        key: torch.stack([s[key] for s in samples])  # type: ignore[misc]
        for key, value in samples[0].items()
        if isinstance(value, Tensor)
    }
    texts = {key: json.dumps([s[key] for s in samples]) for key, value in samples[0].items() if isinstance(value, str)}
    save_safetensors(tensors, path, texts)


def bucket_folders(folder: Path) -> list[Path]:
    """Folders of the size buckets in ``folder``, in order.

    Raises:
        ValueError: there are none.
    """
    folders = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not folders:
        raise ValueError(f"{folder}: no size buckets here; render or encode the clips first")
    return folders


def shard_paths(folder: Path) -> list[Path]:
    """Shards of a folder, in order.

    Raises:
        ValueError: there are none.
    """
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise ValueError(f"{folder}: no shards here; render or encode the clips first")
    return paths


class Shards:
    """Samples of some shards, in memory.

    Args:
        paths: Shard files.
        keys: Tensors to read; all of them by default.

    Attributes:
        tensors: Stacked tensors by key, ``(N, ...)``.
        texts: Lists of ``N`` strings by key.

    Raises:
        ValueError: a shard is broken, or its samples have other shapes than those of the first.
    """

    def __init__(self, paths: Sequence[Path], keys: Iterable[str] | None = None) -> None:
        parts: dict[str, list[Tensor]] = {}
        self.texts: dict[str, list[str]] = {}
        for path in paths:
            try:
                with safe_open(path, "pt") as file:
                    for key in file.keys() if keys is None else keys:
                        parts.setdefault(key, []).append(file.get_tensor(key))
                    for key, value in (file.metadata() or {}).items():
                        self.texts.setdefault(key, []).extend(json.loads(value))
            except SafetensorError as error:
                raise ValueError(f"{path}: broken shard ({error}); delete it and run again") from error
            # The shards of a folder are one array: one of another length comes from another recipe.
            shapes = {key: (values[-1].shape[1:], values[0].shape[1:]) for key, values in parts.items()}
            if odd := [f"{key} {tuple(got)}, not {tuple(want)}" for key, (got, want) in shapes.items() if got != want]:
                raise ValueError(f"{path}: not of the same recipe as {paths[0].name}: {odd[0]}; delete the old shards")
        self.tensors = {key: torch.cat(values) for key, values in parts.items()}

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))
