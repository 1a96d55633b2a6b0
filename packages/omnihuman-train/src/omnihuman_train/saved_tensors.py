"""What a forward keeps for its backward pass: a model runs on meta tensors, and what autograd saves is added up.

Meta tensors have no numbers, so a model of any size runs in a moment; torch's attention would write out its scores on
them, so every op that a kernel replaces has a stand-in that computes nothing and saves what that kernel saves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
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
from omnihuman_train.flops import SampleTokens


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
        latents, conditioning = meta_inputs(config, tokens, samples)
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


def meta_inputs(
    config: MMDiTConfig, tokens: SampleTokens, samples: int, dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Conditioning]:
    """Latents and conditions with so many tokens, on the default device; a frame is one row of patches."""
    frames, rows, columns = config.patch_size
    size = (rows, columns * tokens.frame)

    def latents(count: int, channels: int = config.latent_channels) -> Tensor:
        return torch.empty(samples, channels, count * frames, *size, dtype=dtype)

    text = audio = pose = reference = motion = None
    if tokens.text and config.text_dim is not None:
        pooled = None if config.pooled_dim is None else torch.empty(samples, config.pooled_dim, dtype=dtype)
        states = torch.empty(samples, tokens.text, config.text_dim, dtype=dtype)
        text = TextCondition(tokens=states, mask=torch.ones(samples, tokens.text, dtype=torch.bool), pooled=pooled)
    if tokens.audio_per_frame and config.audio_dim is not None:
        heard = torch.empty(samples, tokens.frames, tokens.audio_per_frame, config.audio_dim, dtype=dtype)
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


def kept_attention(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Keeps its output and the log-sum-exp of every row beside its inputs, as every fused kernel does."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format, requires_grad=False)
    sums = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    result: Tensor = _Keeps.apply(out, q, k, v, out, sums)  # type: ignore[no-untyped-call]
    return result


def kept_frame_attention(q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor, *, eps: float) -> Tensor:
    """Keeps its inputs; its output is not needed for the gradient."""
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
        attention=kept_attention,
        qk_norm_rope=_qk_norm_rope,
        modulated_norm=_modulated_norm,
        gated_residual=_gated_residual,
        residual_modulated_norm=_residual_modulated_norm,
        frame_cross_attention=kept_frame_attention,
    )
