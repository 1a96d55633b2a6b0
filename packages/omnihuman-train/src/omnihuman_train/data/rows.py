"""Members of equal samples read straight into the rows of a batch: one call to the system a member, no copy between.

Samples of a bucket have safetensors members with the same header, so the place of each tensor in the file is known
before it is read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from torch import Tensor

from omnihuman_core.checkpoint import DTYPES
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Layout of a safetensors member.

    Attributes:
        header: Length and header, as they stand in the file.
        places: Tensors in the order of their bytes.
    """

    header: bytes
    places: tuple[TensorPlace, ...]

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
                size = torch.empty(place.shape, dtype=place.dtype, device="meta").nbytes
                if start != end or stop != start + size:
                    raise ValueError(f"{key} is not where it should be")
                places.append(place)
                end = stop
            if end != len(data) - _LENGTH - length:
                raise ValueError("other size")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, RuntimeError) as error:
            raise BrokenSampleError(f"{name}: no safetensors ({error})") from error
        return Layout(header=bytes(data[: _LENGTH + length]), places=tuple(places))

    def empty(self, rows: int) -> dict[str, Tensor]:
        """Tensors ``(rows, ...)`` for as many samples."""
        return {place.name: torch.empty(rows, *place.shape, dtype=place.dtype) for place in self.places}


def read_row(
    data: ShardSet, sample: int, member: str, layout: Layout, out: dict[str, Tensor], row: int, *, verify: bool
) -> None:
    """Fill row ``row`` of ``out`` with the tensors of a member.

    Raises:
        BrokenSampleError: the member has another layout, or (verify) other bytes than the index says.
        BrokenShardError: the shard is cut or changed.
    """
    header = bytearray(len(layout.header))
    rows = [_bytes(out[place.name][row]) for place in layout.places]
    data.read_into(sample, member, [memoryview(header), *rows], verify=verify)
    if header != layout.header:
        raise BrokenSampleError(f"{data.records[sample].key}.{member}: other tensors than those of its bucket")


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
