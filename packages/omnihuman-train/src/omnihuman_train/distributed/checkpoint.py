"""Checkpoints of several processes: torch's distributed checkpoints (DCP), as safetensors and without a pickle.

Each process writes one file with its shards, in a thread, while training goes on. Any number of processes reads them,
each the parts that it holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from omnihuman_core.checkpoint import KeyReport, Mismatch
from omnihuman_train.distributed.mesh import World


def start_writing(tensors: Mapping[str, Tensor], folder: Path, world: World) -> Future[Any]:
    """Copy ``tensors`` now and write them to ``folder`` in a thread; all processes call this.

    The future ends when the files of all processes are there; it fails on all of them where one fails.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    started = async_save(dict(tensors), storage_writer=writer, process_group=world.saving)
    return cast(Future[Any], started)


def layout(folder: Path) -> dict[str, torch.Size]:
    """Whole shapes of the tensors of a checkpoint, by key.

    Raises:
        ValueError: a file is broken.
    """
    try:
        stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder}: broken ({error}); delete this checkpoint and run again") from error
    return {key: entry.size for key, entry in stored.items()}  # type: ignore[union-attr]


def read(tensors: Mapping[str, Tensor], folder: Path, world: World) -> None:
    """Fill ``tensors``, sharded or whole, in place; all processes call this.

    Raises:
        ValueError: a file is broken.
    """
    reader = HuggingFaceStorageReader(str(folder))
    try:
        load(dict(tensors), storage_reader=reader, process_group=world.saving, no_dist=world.size == 1)
    except (OSError, SafetensorError, CheckpointException) as error:
        reason = str(error).splitlines()[-1]
        raise ValueError(f"{folder}: broken ({reason}); delete this checkpoint and run again") from error


def compare(found: Mapping[str, torch.Size], expected: Mapping[str, Tensor]) -> KeyReport:
    """Keys and shapes of a checkpoint against those of a model."""
    return KeyReport(
        missing=tuple(sorted(expected.keys() - found.keys())),
        unexpected=tuple(sorted(found.keys() - expected.keys())),
        mismatched=tuple(
            Mismatch(key=key, expected=tuple(value.shape), found=tuple(found[key]))
            for key, value in expected.items()
            if key in found and found[key] != value.shape
        ),
    )
