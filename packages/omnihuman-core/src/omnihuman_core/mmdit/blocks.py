"""Double- and single-stream blocks (HunyuanVideo's structure), with audio cross-attention at the end of each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from omnihuman_core.contracts import Ops, Segments
from omnihuman_core.mmdit.config import MMDiTConfig
from omnihuman_core.mmdit.layers import MLP, FrameCrossAttention, QKNorm, block_modulation


@dataclass(frozen=True, kw_only=True)
class BlockInputs:
    """What every block gets besides the tokens.

    Attributes:
        condition: ``(B, len(segments), D)`` condition vectors, ``6 D`` wide where the modulation is shared; the last
            row is that of the noisy video and of the text.
        segments: Runs of visual tokens with one modulation each.
        cos: ``(L + S, K / 2)`` over visual and text tokens.
        sin: ``(L + S, K / 2)``.
        mask: ``(B, L + S)`` bool, true where a key counts, or None.
        audio: ``(B, t, A, D_audio)`` audio tokens of motion and video frames, or None.
        first_audible: Tokens in front of the motion frames (the reference), which hear nothing.
    """

    condition: Tensor
    segments: Segments
    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    audio: Tensor | None
    first_audible: int


def _add_and_listen(
    module: FrameCrossAttention | None,
    ops: Ops,
    x: Tensor,
    change: Tensor,
    gate: Tensor,
    inputs: BlockInputs,
    *,
    segments: Segments,
    visual: int,
) -> Tensor:
    """``x + gate * change``, then audio cross-attention added to the motion and video tokens.

    The norm of the audio path is taken in the same pass as the gated sum.

    Args:
        module: The audio path, or None.
        ops: The ops.
        x: ``(B, L or L + S, D)``.
        change: Like ``x``.
        gate: ``(B, len(segments), D)``.
        inputs: What every block gets.
        segments: Lengths of the runs of tokens.
        visual: Visual tokens ``L``.
    """
    if module is None or inputs.audio is None:
        return ops.gated_residual(x, change, gate, segments=segments)
    clip = module.hear(inputs.audio)
    affine = (part.expand_as(gate) for part in (clip.shift, clip.scale))  # (B, len(segments), D)
    x, normed = ops.residual_modulated_norm(x, change, gate, *affine, segments=segments, eps=module.eps)
    audible = slice(inputs.first_audible, visual)
    heard = module(normed[:, audible], clip)
    if torch.is_grad_enabled():
        return torch.cat([x[:, : audible.start], x[:, audible] + heard, x[:, visual:]], dim=1)  # (B, L or L + S, D)
    # Without gradients nobody needs the tokens of before.
    x[:, audible].add_(heard)
    return x


def _beside(attended: Tensor, hidden: Tensor) -> Tensor:
    """``attended (B, L, D)`` and, beside it, the GELU of ``hidden (B, L, M)``; ``(B, L, D + M)``."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.cat([attended, F.gelu(hidden, approximate="tanh")], dim=-1)  # (B, L, D + M)
    # Without gradients the GELU writes where it is wanted, which saves a pass over the wider part. A compiler sees to
    # that itself, and takes no such destination.
    width = attended.shape[-1]
    joined = attended.new_empty(*attended.shape[:-1], width + hidden.shape[-1])
    joined[..., :width] = attended
    torch.ops.aten.gelu.out(hidden, approximate="tanh", out=joined[..., width:])
    return joined


def _apart(x: Tensor, lengths: Segments) -> list[Tensor]:
    """The streams that lie side by side in ``x (B, L + S, D)``: ``(B, L, D)`` and ``(B, S, D)``."""
    batch = x.shape[0]
    if batch == 1 or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return list(x.split_with_sizes(lengths, dim=1))
    # Products want each stream of a batch in one piece, and one kernel copies them all. Backward would pay for that
    # with several, and compiled code would be bound to a batch size.
    samples = [sample.split_with_sizes(lengths) for sample in x]
    joined = torch.cat([part for stream in zip(*samples, strict=True) for part in stream])  # (B * L + B * S, D)
    streams = joined.split_with_sizes([batch * length for length in lengths])
    return [rearrange(stream, "(B L) D -> B L D", B=batch) for stream in streams]


class Stream(nn.Module):
    """The weights of one stream of a double block."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.modulation = block_modulation(config, 6)
        self.qkv = nn.Linear(width, 3 * width)
        self.qk_norm = QKNorm(config.head_dim)
        self.out = nn.Linear(width, width)
        self.mlp = MLP(width, config.mlp_size, width, nn.GELU(approximate="tanh"))


class DoubleStreamBlock(nn.Module):
    """Video and text have weights of their own and attend to each other."""

    def __init__(self, config: MMDiTConfig, ops: Ops, *, audio_dim: int | None) -> None:
        super().__init__()
        self.ops = ops
        self.num_heads = config.num_heads
        self.eps = config.norm_eps
        self.video = Stream(config)
        self.text = Stream(config) if config.text_dim is not None else None
        self.audio = FrameCrossAttention(config, audio_dim, ops) if audio_dim is not None else None

    def _qkv(self, stream: Stream, x: Tensor, shift: Tensor, scale: Tensor, segments: Segments) -> Tensor:
        """Packed q, k and v of a stream, before norm and rotation, ``(B, L, 3 D)``."""
        qkv: Tensor = stream.qkv(self.ops.modulated_norm(x, shift, scale, segments=segments, eps=self.eps))
        return qkv

    def _attend(self, qkv: Tensor, streams: list[Stream], lengths: Segments, inputs: BlockInputs) -> Tensor:
        """Attention over all streams, each with its own norms of q and k; ``(B, L + S, 3 D)`` -> ``(B, L + S, D)``."""
        q, k, v = rearrange(qkv, "B L (three N K) -> three B L N K", three=3, N=self.num_heads).unbind()
        q_weights = tuple(stream.qk_norm.q_weight for stream in streams)
        k_weights = tuple(stream.qk_norm.k_weight for stream in streams)
        tables = inputs.cos, inputs.sin
        q, k = self.ops.qk_norm_rope(q, k, q_weights, k_weights, *tables, eps=self.eps, segments=lengths)
        return rearrange(self.ops.attention(q, k, v, mask=inputs.mask), "B L N K -> B L (N K)")

    def _change(
        self, stream: Stream, x: Tensor, attended: Tensor, modulation: list[Tensor], segments: Segments
    ) -> tuple[Tensor, Tensor]:
        """A stream after its output projection, and what its MLP adds to it."""
        gate, shift, scale = modulation
        # A part of a batch: torch copies it in any case, and then adds the bias in a kernel of its own.
        out = stream.out(attended.contiguous())
        x, normed = self.ops.residual_modulated_norm(x, out, gate, shift, scale, segments=segments, eps=self.eps)
        return x, stream.mlp(normed)

    def forward(self, video: Tensor, text: Tensor | None, inputs: BlockInputs) -> tuple[Tensor, Tensor | None]:
        """``video (B, L, D)``, ``text (B, S, D)`` or None -> the same shapes."""
        visual = video.shape[1]
        shift, scale, *rest, gate = self.video.modulation(inputs.condition)
        qkv = self._qkv(self.video, video, shift, scale, inputs.segments)
        if self.text is None or text is None:
            attended = self._attend(qkv, [self.video], (visual,), inputs)
        else:
            words: Segments = (text.shape[1],)
            text_shift, text_scale, *text_rest, text_gate = self.text.modulation(inputs.condition[:, -1:])
            text_qkv = self._qkv(self.text, text, text_shift, text_scale, words)
            qkv = torch.cat([qkv, text_qkv], dim=1)  # (B, L + S, 3 D)
            attended = self._attend(qkv, [self.video, self.text], (visual, *words), inputs)
            attended, text_attended = _apart(attended, (visual, *words))
            text, change = self._change(self.text, text, text_attended, text_rest, words)
            text = self.ops.gated_residual(text, change, text_gate, segments=words)
        video, change = self._change(self.video, video, attended, rest, inputs.segments)
        video = _add_and_listen(
            self.audio, self.ops, video, change, gate, inputs, segments=inputs.segments, visual=visual
        )
        return video, text


class SingleStreamBlock(nn.Module):
    """All tokens share weights; attention and MLP run side by side."""

    def __init__(self, config: MMDiTConfig, ops: Ops, *, audio_dim: int | None) -> None:
        super().__init__()
        width = config.hidden_size
        self.ops = ops
        self.num_heads = config.num_heads
        self.eps = config.norm_eps
        self.sizes = (3 * width, config.mlp_size)
        self.modulation = block_modulation(config, 3)
        self.linear1 = nn.Linear(width, 3 * width + config.mlp_size)
        self.qk_norm = QKNorm(config.head_dim)
        self.linear2 = nn.Linear(width + config.mlp_size, width)
        self.audio = FrameCrossAttention(config, audio_dim, ops) if audio_dim is not None else None

    def forward(self, x: Tensor, inputs: BlockInputs, text_tokens: int) -> Tensor:
        """``x (B, L + S, D)``, visual tokens first, ``text_tokens`` is ``S`` -> ``(B, L + S, D)``."""
        segments = (*inputs.segments[:-1], inputs.segments[-1] + text_tokens)
        shift, scale, gate = self.modulation(inputs.condition)
        normed = self.ops.modulated_norm(x, shift, scale, segments=segments, eps=self.eps)
        qkv, hidden = self.linear1(normed).split_with_sizes(self.sizes, dim=-1)
        q, k, v = rearrange(qkv, "B L (three N K) -> three B L N K", three=3, N=self.num_heads).unbind()
        norm = self.qk_norm
        q, k = self.ops.qk_norm_rope(q, k, norm.q_weight, norm.k_weight, inputs.cos, inputs.sin, eps=self.eps)
        attended = rearrange(self.ops.attention(q, k, v, mask=inputs.mask), "B L N K -> B L (N K)")
        out = self.linear2(_beside(attended, hidden))
        visual = x.shape[1] - text_tokens
        return _add_and_listen(self.audio, self.ops, x, out, gate, inputs, segments=segments, visual=visual)
