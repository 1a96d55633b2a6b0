"""The same shards through the ``webdataset`` library, for pipelines that are built on it.

It is installed with this package, but training and packing never import it: they read and write plain tars. Shards are
checked against the index by size, names of shards are never URLs, and members are decoded here: the library's own
decoder would unpickle.
"""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

from omnihuman_train.data.members import load_tensors
from omnihuman_train.data.shard_set import ShardSet
from omnihuman_train.data.shards import MEMBERS, BrokenShardError, split_name


def open_webdataset(folder: Path) -> Any:
    """A ``webdataset.WebDataset`` over the shards of a data set, in order: iterate it, or go on with its pipeline.

    Each sample is a dictionary: ``__key__``, ``json`` parsed, safetensors members as dictionaries of tensors, media as
    bytes.

    Raises:
        ValueError: webdataset is not installed, or the data set cannot be read.
        BrokenShardError: while iterating: a member that no shard may hold.
    """
    # Set before the import: pipes, and unpickling by the library, are then off.
    os.environ["WDS_SECURE"] = "1"
    try:
        webdataset: Any = import_module("webdataset")
    except ImportError:
        raise ValueError("webdataset is not installed: pip install webdataset") from None
    shards = [str((folder / shard.name).resolve()) for shard in ShardSet(folder).index.shards]
    return webdataset.WebDataset(shards, shardshuffle=False).map(decode_members)


def decode_members(sample: dict[str, Any]) -> dict[str, Any]:
    """Decode a sample of :mod:`webdataset` by the names of its members.

    Raises:
        BrokenShardError: a member that no shard may hold.
        BrokenSampleError: a member that cannot be decoded.
    """
    decoded: dict[str, Any] = {}
    for name, value in sample.items():
        if name.startswith("__"):
            decoded[name] = value
            continue
        try:
            split_name(f"{sample['__key__']}.{name}")
        except ValueError as error:
            raise BrokenShardError(f"{sample.get('__url__')}: {error}") from None
        if len(value) > MEMBERS[name]:
            raise BrokenShardError(f"{sample.get('__url__')}: member {name} is larger than allowed")
        if name == "json":
            decoded[name] = json.loads(value)
        elif name.endswith(".safetensors"):
            decoded[name] = load_tensors(value, f"{sample['__key__']}.{name}")
        else:
            decoded[name] = value
    return decoded
