"""Regional compilation: each transformer block is compiled by itself, and one compilation serves all of its kind."""

from __future__ import annotations

import torch
from torch import nn

from omnihuman_train.distributed.activation_checkpoint import blocks_of


def compile_blocks(model: nn.Module, *, backend: str = "inductor") -> None:
    """Compile the blocks of ``model`` in place, after activation checkpointing and before sharding.

    Shapes are taken as static: a run has few buckets, and each compiles once. Parameters keep their names.

    Args:
        model: A backbone, or a module that holds one.
        backend: What ``torch.compile`` hands its graphs to.
    """
    # Torch gives up on a function that has had this many graphs; blocks of a kind share their code, not their graphs.
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 64)
    for block in blocks_of(model):
        block.forward = torch.compile(block.forward, backend=backend, dynamic=False)
