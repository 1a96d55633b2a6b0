"""Regional compilation: each transformer block is compiled by itself, and one compilation serves all of its kind."""

from __future__ import annotations

import torch
from torch import nn

from omnihuman_train.distributed.activation_checkpoint import blocks_of

# Graphs of one shape under one code: blocks of both kinds, with and without audio, for training and for validation, and
# where weights are frozen the first block, whose input needs no gradient.
_GRAPHS = 16


def compile_blocks(model: nn.Module, *, shapes: int = 1, backend: str = "inductor") -> None:
    """Compile the blocks of ``model`` in place, after activation checkpointing and before sharding.

    Shapes are taken as static: each compiles once, for all blocks of a kind. Parameters keep their names.

    Args:
        model: A backbone, or a module that holds one.
        shapes: Shapes that the run has. Torch gives up on a function that has had more graphs than its limit and runs
            it uncompiled from then on; the limit is raised to what these need.
        backend: What ``torch.compile`` hands its graphs to.
    """
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, _GRAPHS * shapes)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, _GRAPHS * shapes)
    for block in blocks_of(model):
        block.forward = torch.compile(block.forward, backend=backend, dynamic=False)
