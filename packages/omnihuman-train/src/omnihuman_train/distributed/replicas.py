"""Data parallel with whole copies: every process holds all weights, and gradients are averaged."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from omnihuman_train.distributed.fsdp import tensors_of
from omnihuman_train.distributed.mesh import World


def same_weights(model: nn.Module, world: World) -> None:
    """Give every process the weights and buffers of the first one, in place."""
    if world.size > 1:
        for value in tensors_of(model).values():
            dist.broadcast(value, 0)


def average_gradients(model: nn.Module, world: World) -> None:
    """Make each gradient the mean over all processes, in one collective.

    The mean is that of the whole batch where each process has computed an equal part of it. The same weights have a
    gradient on all processes, since the batches of a step are of one kind.
    """
    if world.size == 1:
        return
    gradients: list[Tensor] = [p.grad for p in model.parameters() if p.grad is not None]
    together = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(together)
    together /= world.size
    parts = together.split([gradient.numel() for gradient in gradients])  # type: ignore[no-untyped-call]
    torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])
