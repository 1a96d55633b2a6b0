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


def _listen(module: FrameCrossAttention | None, x: Tensor, inputs: BlockInputs, visual: int) -> Tensor:
    """Add audio cross-attention to the motion and video tokens; ``x (B, L or L + S, D)``."""
    if module is None or inputs.audio is None:
        return x
    sizes = (inputs.first_audible, visual - inputs.first_audible, x.shape[1] - visual)
    silent, audible, rest = x.split_with_sizes(sizes, dim=1)
    return torch.cat([silent, audible + module(audible, inputs.audio), rest], dim=1)  # (B, L or L + S, D)


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

    def _qkv(
        self, stream: Stream, x: Tensor, shift: Tensor, scale: Tensor, segments: Segments, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised and rotated q, k and plain v of a stream, ``(B, L, N, K)`` each."""
        normed = self.ops.modulated_norm(x, shift, scale, segments=segments, eps=self.eps)
        q, k, v = rearrange(stream.qkv(normed), "B L (three N K) -> three B L N K", three=3, N=self.num_heads).unbind()
        norm = stream.qk_norm
        q, k = self.ops.qk_norm_rope(q, k, norm.q_weight, norm.k_weight, cos, sin, eps=self.eps)
        return q, k, v

    def _finish(
        self, stream: Stream, x: Tensor, attended: Tensor, modulation: tuple[Tensor, ...], segments: Segments
    ) -> Tensor:
        """Output projection and MLP of a stream, each added through its gate."""
        gate, shift, scale, mlp_gate = modulation
        out = stream.out(rearrange(attended, "B L N K -> B L (N K)"))
        x, normed = self.ops.residual_modulated_norm(x, out, gate, shift, scale, segments=segments, eps=self.eps)
        return self.ops.gated_residual(x, stream.mlp(normed), mlp_gate, segments=segments)

    def forward(self, video: Tensor, text: Tensor | None, inputs: BlockInputs) -> tuple[Tensor, Tensor | None]:
        """``video (B, L, D)``, ``text (B, S, D)`` or None -> the same shapes."""
        visual = video.shape[1]
        shift, scale, *rest = self.video.modulation(inputs.condition)
        tables = inputs.cos[:visual], inputs.sin[:visual]
        q, k, v = self._qkv(self.video, video, shift, scale, inputs.segments, *tables)
        if self.text is None or text is None:
            attended = self.ops.attention(q, k, v, mask=inputs.mask)
        else:
            words: Segments = (text.shape[1],)
            text_shift, text_scale, *text_rest = self.text.modulation(inputs.condition[:, -1:])
            tables = inputs.cos[visual:], inputs.sin[visual:]
            text_qkv = self._qkv(self.text, text, text_shift, text_scale, words, *tables)
            q, k, v = (torch.cat(pair, dim=1) for pair in zip((q, k, v), text_qkv, strict=True))  # (B, L + S, N, K)
            attended = self.ops.attention(q, k, v, mask=inputs.mask)
            attended, text_attended = attended.split_with_sizes((visual, *words), dim=1)
            text = self._finish(self.text, text, text_attended, tuple(text_rest), words)
        video = self._finish(self.video, video, attended, tuple(rest), inputs.segments)
        return _listen(self.audio, video, inputs, visual), text


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
        out = self.linear2(torch.cat([attended, F.gelu(hidden, approximate="tanh")], dim=-1))
        x = self.ops.gated_residual(x, out, gate, segments=segments)
        return _listen(self.audio, x, inputs, x.shape[1] - text_tokens)
