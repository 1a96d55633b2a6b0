"""Memory of one rank of a training run, part by part, before there is one.

Weights and what goes with them are counted parameter by parameter, as FSDP2 shards them. Activations are counted too,
not guessed: the model runs once on meta tensors of the real shape, and what autograd would keep is added up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from omnihuman_core.contracts import (
    AudioCondition,
    Conditioning,
    MotionCondition,
    Ops,
    PoseCondition,
    ReferenceCondition,
    Segments,
    TextCondition,
)
from omnihuman_core.mmdit import MMDiT, MMDiTConfig
from omnihuman_core.ops import eager_ops
from omnihuman_train.config import OptimizerConfig
from omnihuman_train.distributed.activation_checkpoint import CheckpointMode, blocks_of
from omnihuman_train.flops import SampleTokens

FP32, BF16 = 4, 2


@dataclass(frozen=True, kw_only=True)
class WeightMemory:
    """Bytes of one rank that do not depend on the samples.

    Attributes:
        weights: Its shard of the fp32 weights, and the buffers.
        gradients: Its shard of their gradients.
        moments: Its shard of what the optimiser remembers.
        average: Its shard of the moving average.
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
    if shards == 1:
        gathered, reduced = BF16 * sum(p.numel() for p in model.parameters() if p.ndim > 1), 0
    else:
        # The next block is gathered while one computes; what is outside the blocks stays whole for the whole step.
        gathered, reduced = BF16 * (outside + sum(blocks[:2])), (BF16 + FP32) * max([outside, *blocks[:1]])
    return WeightMemory(
        weights=FP32 * held + sum(buffer.nbytes for buffer in model.buffers()),
        gradients=FP32 * trained,
        moments=FP32 * moments,
        average=FP32 * held,
        gathered=gathered,
        reduced=reduced,
    )


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
    ops = fused_ops() if fused else replace(eager_ops(), attention=_attention, frame_cross_attention=_frame_attention)
    blocks, rest = saved_bytes(config, tokens, samples, ops)
    return sum(blocks), max(blocks), rest


def saved_bytes(config: MMDiTConfig, tokens: SampleTokens, samples: int, ops: Ops) -> tuple[list[int], int]:
    """Bytes that a forward keeps for its backward pass, in bf16: of each block, and of all the rest.

    A tensor that two blocks keep, such as what one gives to the next, is counted once; weights are not counted.

    Args:
        config: The architecture.
        tokens: Tokens of a sample on this rank.
        samples: Samples ``B``.
        ops: The ops, which must run on meta tensors.
    """
    with torch.device("meta"):
        # The refiner is small; what it keeps counts as outside the blocks.
        model = MMDiT(config, ops).to(torch.bfloat16)
        latents, conditioning = _inputs(config, tokens, samples)
        blocks = [*model.double_blocks, *model.single_blocks]
        with _counted(model, blocks) as found:
            model(latents, torch.empty(samples), conditioning)
    return [found[number] for number in range(len(blocks))], found[-1]


def encoder_bytes(encoder: Any, features: Tensor) -> int:
    """Bytes that a condition encoder keeps for its backward pass of ``features``, both on ``meta``."""
    with _counted(encoder, []) as found:
        encoder.encode(features)
    return found[-1]


@contextmanager
def _counted(model: nn.Module, blocks: Sequence[nn.Module]) -> Iterator[dict[int, int]]:
    """Counts the bytes that autograd saves while the context is open, by the number of the block that runs, or -1."""
    weights = {_storage(value) for value in (*model.parameters(), *model.buffers())}
    found = dict.fromkeys(range(-1, len(blocks)), 0)
    # Tensors are held, so that no other one gets the place of their storage.
    seen: dict[int, Tensor] = {}
    running = [-1]

    def enter(number: int, *_: Any) -> None:
        running.append(number)

    def leave(*_: Any) -> None:
        running.pop()

    def note(value: Tensor) -> Tensor:
        storage = _storage(value)
        if storage not in weights and storage not in seen:
            seen[storage] = value
            found[running[-1]] += value.untyped_storage().nbytes()
        return value

    hooks = [block.register_forward_pre_hook(partial(enter, number)) for number, block in enumerate(blocks)]
    hooks += [block.register_forward_hook(leave) for block in blocks]
    with saved_tensors_hooks(note, lambda value: value):
        yield found
    for hook in hooks:
        hook.remove()


def _storage(value: Tensor) -> int:
    return int(value.untyped_storage()._cdata)


def _inputs(config: MMDiTConfig, tokens: SampleTokens, samples: int) -> tuple[Tensor, Conditioning]:
    """Latents and conditions with so many tokens, on the default device; a frame is one row of patches."""
    frames, rows, columns = config.patch_size
    size = (rows, columns * tokens.frame)
    bf16 = torch.bfloat16

    def latents(count: int, channels: int = config.latent_channels) -> Tensor:
        return torch.empty(samples, channels, count * frames, *size, dtype=bf16)

    text = audio = pose = reference = motion = None
    if tokens.text and config.text_dim is not None:
        pooled = None if config.pooled_dim is None else torch.empty(samples, config.pooled_dim, dtype=bf16)
        states = torch.empty(samples, tokens.text, config.text_dim, dtype=bf16)
        text = TextCondition(tokens=states, mask=torch.ones(samples, tokens.text, dtype=torch.bool), pooled=pooled)
    if tokens.audio_per_frame and config.audio_dim is not None:
        heard = torch.empty(samples, tokens.frames, tokens.audio_per_frame, config.audio_dim, dtype=bf16)
        audio = AudioCondition(tokens=heard.requires_grad_())
    if config.pose_channels is not None:
        pose = PoseCondition(features=latents(tokens.frames, config.pose_channels).requires_grad_())
    if tokens.references:
        reference = ReferenceCondition(latents=latents(1))
    if tokens.motion_frames:
        motion = MotionCondition(latents=latents(tokens.motion_frames))
    conditioning = Conditioning(text=text, audio=audio, pose=pose, reference=reference, motion=motion)
    return latents(tokens.video_frames), conditioning


class _Keeps(torch.autograd.Function):
    """``result`` as it is, with ``kept`` saved for a backward pass that never comes."""

    @staticmethod
    def forward(ctx: Any, result: Tensor, *kept: Tensor) -> Tensor:
        ctx.save_for_backward(*kept)
        return result.view_as(result)


def _keeps(like: Tensor, *kept: Tensor) -> Tensor:
    result: Tensor = _Keeps.apply(torch.empty_like(like, memory_format=torch.contiguous_format), *kept)  # type: ignore[no-untyped-call]
    return result


def _attention(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Keeps its output and the log-sum-exp of every row beside its inputs, as every fused kernel does."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format, requires_grad=False)
    sums = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    result: Tensor = _Keeps.apply(out, q, k, v, out, sums)  # type: ignore[no-untyped-call]
    return result


def _frame_attention(q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor, *, eps: float) -> Tensor:
    return _keeps(q, q, k, v)


def _qk_norm_rope(q: Tensor, k: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return _keeps(q, q), _keeps(k, k)


def _modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, *, segments: Segments, eps: float) -> Tensor:
    return _keeps(x, x)


def _gated_residual(residual: Tensor, x: Tensor, gate: Tensor, *, segments: Segments) -> Tensor:
    return _keeps(residual, x)


def _residual_modulated_norm(
    residual: Tensor, x: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, *, segments: Segments, eps: float
) -> tuple[Tensor, Tensor]:
    added = _keeps(residual, x)
    return added, _keeps(added, added)


def fused_ops() -> Ops:
    """Stand-ins of ops that make one pass each and keep their inputs alone; they compute nothing."""
    return Ops(
        attention=_attention,
        qk_norm_rope=_qk_norm_rope,
        modulated_norm=_modulated_norm,
        gated_residual=_gated_residual,
        residual_modulated_norm=_residual_modulated_norm,
        frame_cross_attention=_frame_attention,
    )
