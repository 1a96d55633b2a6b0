"""Members of equal samples read straight into the rows of a batch: one call to the system a member, no copy between.

Samples of a bucket have safetensors members with the same header, so the place of each tensor in the file is known
before it is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from omnihuman_core.checkpoint import DTYPES
from omnihuman_train.data.buffers import BufferPool
from omnihuman_train.data.shard_set import ShardSet
from omnihuman_train.data.shards import BrokenSampleError

_LENGTH = 8
_MAX_HEADER = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorPlace:
    """A tensor in a member: name, dtype and shape; tensors follow each other in the file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Layout of a safetensors member.

    Attributes:
        header: Length and header, as they stand in the file.
        places: Tensors in the order of their bytes.
    """

    header: bytes
    places: tuple[TensorPlace, ...]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor."""
        return {place.name: place.shape for place in self.places}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Dtype of each tensor."""
        return {place.name: place.dtype for place in self.places}

    @staticmethod
    def parse(data: bytes, name: str) -> Layout:
        """Layout of a whole member.

        Raises:
            BrokenSampleError: no safetensors, or a dtype that is not supported.
        """
        try:
            length = int.from_bytes(data[:_LENGTH], "little")
            if not 0 < length <= min(_MAX_HEADER, len(data) - _LENGTH):
                raise ValueError("no header")
            head = json.loads(data[_LENGTH : _LENGTH + length])
            entries = sorted(
                ((*v["data_offsets"], k, v) for k, v in head.items() if k != "__metadata__"), key=lambda e: e[:2]
            )
            places, end = [], 0
            for start, stop, key, entry in entries:
                place = TensorPlace(name=key, dtype=DTYPES[entry["dtype"]], shape=tuple(map(int, entry["shape"])))
                if start != end or stop != start + place.size or min(place.shape, default=0) < 0:
                    raise ValueError(f"{key} is not where it should be")
                places.append(place)
                end = stop
            if end != len(data) - _LENGTH - length:
                raise ValueError("other size")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, RuntimeError) as error:
            raise BrokenSampleError(f"{name}: no safetensors ({error})") from error
        return Layout(header=bytes(data[: _LENGTH + length]), places=tuple(places))


class Rows:
    """A batch that is being read: tensors ``(rows, ...)``, and where the bytes of each row go.

    Args:
        layouts: Layout of each member; texts shorter than it fill the front of their row.
        count: Rows.
        pool: Gives the memory.
    """

    def __init__(self, layouts: Mapping[str, Layout], count: int, pool: BufferPool) -> None:
        self.tensors = {
            place.name: pool.empty((count, *place.shape), place.dtype)
            for layout in layouts.values()
            for place in layout.places
        }
        # Slices of these cost a hundredth of what slices of tensors cost.
        self._views = {name: _bytes(tensor) for name, tensor in self.tensors.items()}
        self._strides = {name: len(view) // count for name, view in self._views.items()}

    def read(self, data: ShardSet, sample: int, member: str, layout: Layout, row: int, *, verify: bool) -> None:
        """Fill a row with the tensors of a member.

        Raises:
            BrokenSampleError: the member has another layout, or (verify) other bytes than the index says.
            BrokenShardError: the shard is cut or changed.
        """
        header = bytearray(len(layout.header))
        buffers = [memoryview(header)]
        for place in layout.places:
            start = row * self._strides[place.name]
            buffers.append(self._views[place.name][start : start + place.size])
        data.read_into(sample, member, buffers, verify=verify)
        if header != layout.header:
            raise BrokenSampleError(f"{data.records[sample].key}.{member}: other tensors than those of its bucket")


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data
