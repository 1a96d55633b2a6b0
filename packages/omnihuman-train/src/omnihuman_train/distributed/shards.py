"""Tensors that may be sharded: their part on this process, the whole, and how to fill one from the whole."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def local(tensor: Tensor) -> Tensor:
    """The part that this process holds, in the same memory; a plain tensor is whole anywhere."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it, on every process, which must all call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def fill(target: Tensor, value: Tensor) -> None:
    """Put a whole ``value`` into ``target``: of a sharded one, the part that this process holds."""
    if isinstance(target, DTensor):
        shape, offset = compute_local_shape_and_global_offset(target.shape, target.device_mesh, target.placements)
        parts = tuple(slice(start, start + length) for start, length in zip(offset, shape, strict=True))
        target.to_local().copy_(value[parts])
    else:
        target.copy_(value)
