"""Memory of batches, used again once nobody holds the batch: fresh pages cost as much time as reading into them."""

from __future__ import annotations

import math
import mmap
import weakref
from collections import defaultdict

import torch
from torch import Tensor

# Below, the allocator of torch is as good.
_SMALLEST = 2**18
# Buffers of one size that are kept; a stream has a few batches under way.
_KEPT = 8


class BufferPool:
    """Gives out tensors on memory that returns by itself when the last tensor on it is gone."""

    def __init__(self) -> None:
        self._free: defaultdict[int, list[mmap.mmap]] = defaultdict(list)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of any content, as :func:`torch.empty` gives it."""
        count = math.prod(shape)
        size = count * dtype.itemsize
        if size < _SMALLEST:
            return torch.empty(shape, dtype=dtype)
        capacity = 1 << (size - 1).bit_length()
        free = self._free[capacity]
        try:
            buffer = free.pop()
        except IndexError:
            buffer = mmap.mmap(-1, capacity)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                buffer.madvise(mmap.MADV_HUGEPAGE)
        view = memoryview(buffer)
        # The storage of the tensor, and of all views of it, holds this very object.
        tensor = torch.frombuffer(view, dtype=dtype, count=count).view(shape)
        weakref.finalize(view, _give_back, free, buffer).atexit = False
        return tensor


def _give_back(free: list[mmap.mmap], buffer: mmap.mmap) -> None:
    if len(free) < _KEPT:
        free.append(buffer)
