"""Memory of one rank of a training run, part by part, before there is one.

Weights and what goes with them are counted parameter by parameter, as FSDP2 shards them. Activations are counted too,
not guessed: the model runs once on meta tensors of the real shape, and what autograd would keep is added up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import torch
from torch import nn

from omnihuman_core.mmdit import MMDiTConfig
from omnihuman_core.ops import eager_ops
from omnihuman_train.config import OptimizerConfig
from omnihuman_train.distributed.activation_checkpoint import CheckpointMode, blocks_of
from omnihuman_train.flops import SampleTokens
from omnihuman_train.saved_tensors import fused_ops, kept_attention, kept_frame_attention, saved_bytes

FP32, BF16 = 4, 2


@dataclass(frozen=True, kw_only=True)
class WeightMemory:
    """Bytes of one rank that do not depend on the samples.

    Attributes:
        weights: Its shard of the fp32 weights, and the buffers.
        gradients: Its shard of their gradients.
        moments: Its shard of what the optimiser remembers.
        average: Its shard of the moving average of trained weights.
        gathered: bf16 weights that are whole while they are used: two blocks, and what is outside the blocks. Without
            sharding, the bf16 copies that autocast makes of all matrices.
        reduced: Whole gradients of a block, bf16 and fp32, on their way to their shards.
    """

    weights: int
    gradients: int
    moments: int
    average: int
    gathered: int
    reduced: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(getattr(self, field.name) for field in fields(self))


def shard_numel(shape: Sequence[int], shards: int) -> int:
    """Numbers of the largest shard: FSDP2 cuts the first axis into ``shards`` parts of equal length, rounded up."""
    if not shape:
        return 1
    return -(-shape[0] // shards) * int(torch.Size(shape[1:]).numel())


def weight_memory(model: nn.Module, optimizer: OptimizerConfig, *, shards: int) -> WeightMemory:
    """Bytes that do not depend on the samples, of the rank that holds most.

    Args:
        model: The trained module; meta tensors do.
        optimizer: Decides what is remembered of each weight: two moments, or with Muon one for matrices of blocks.
        shards: Ranks that share one copy.
    """
    held = trained = moments = 0
    for name, parameter in model.named_parameters():
        numel = shard_numel(parameter.shape, shards)
        held += numel
        if parameter.requires_grad:
            one = optimizer.name == "muon" and parameter.ndim == 2 and "blocks." in name
            trained += numel
            moments += numel if one else 2 * numel
    blocks = sorted((sum(p.numel() for p in block.parameters()) for block in blocks_of(model)), reverse=True)
    outside = sum(p.numel() for p in model.parameters()) - sum(blocks)
    learning = [_trained(block) for block in blocks_of(model)]
    if shards == 1:
        gathered, reduced = BF16 * sum(p.numel() for p in model.parameters() if p.ndim > 1), 0
    else:
        # The next block is gathered while one computes; what is outside the blocks stays whole for the whole step.
        gathered = BF16 * (outside + sum(blocks[:2]))
        reduced = (BF16 + FP32) * max([_trained(model) - sum(learning), *learning])
    return WeightMemory(
        weights=FP32 * held + sum(buffer.nbytes for buffer in model.buffers()),
        gradients=FP32 * trained,
        moments=FP32 * moments,
        average=FP32 * trained,
        gathered=gathered,
        reduced=reduced,
    )


def _trained(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@dataclass(frozen=True, kw_only=True)
class ActivationMemory:
    """Bytes of one rank that grow with its tokens.

    Attributes:
        kept: What all blocks keep for the backward pass.
        working: One block at work in it: what is recomputed, and gradients as wide as its MLP.
        outside: Tokens, positions and latents outside the blocks.
    """

    kept: int
    working: int
    outside: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.kept + self.working + self.outside


def activation_memory(
    config: MMDiTConfig,
    tokens: SampleTokens,
    *,
    mode: CheckpointMode,
    samples: int,
    sequence: int,
    fused: bool,
    wide: bool = False,
) -> ActivationMemory:
    """Bytes of the activations of one rank.

    Args:
        config: The architecture.
        tokens: Tokens of a sample.
        mode: Checkpointing of the blocks.
        samples: Samples that a rank computes at once.
        sequence: Ranks that share the tokens of a sample.
        fused: Ops of one pass each, which keep their inputs alone, as the ``triton`` bundle has; else the eager ones.
        wide: fp32 in the place of bf16.
    """
    mine = replace(tokens, frame=-(-tokens.frame // sequence))
    # What two samples keep is twice what one keeps, but that eager ops have a shorter way for a single one.
    counted = min(samples, 2)
    blocks, largest, rest = (part * samples // counted for part in _saved(config, mine, counted, fused))
    token = BF16 * samples * config.hidden_size
    stream = token * mine.total
    if mode == "none":
        kept, again = blocks, 0
    else:
        kept, again = config.num_blocks * stream, largest
    if mode == "selective":
        # Outputs of the attentions, which are as wide as a hidden state, and a log-sum-exp for every head.
        scale = FP32 * samples * config.num_heads
        heard = mine.frame * mine.frames if mine.audio_per_frame else 0
        kept += config.num_blocks * (stream + scale * mine.total) + len(config.audio_blocks) * heard * token
    # The backward of an MLP holds the gradients of both sides of its activation, and of what goes in and out.
    widest = 2 * BF16 * samples * mine.total * (config.mlp_size + config.hidden_size)
    factor = 2 if wide else 1
    return ActivationMemory(kept=factor * kept, working=factor * (widest + again), outside=factor * (rest + 2 * stream))


@lru_cache(maxsize=64)
def _saved(config: MMDiTConfig, tokens: SampleTokens, samples: int, fused: bool) -> tuple[int, int, int]:
    """Bytes kept by all blocks together, by the largest one, and by the rest."""
    ops = (
        fused_ops()
        if fused
        else replace(eager_ops(), attention=kept_attention, frame_cross_attention=kept_frame_attention)
    )
    blocks, rest = saved_bytes(config, tokens, samples, ops)
    return sum(blocks), max(blocks), rest
