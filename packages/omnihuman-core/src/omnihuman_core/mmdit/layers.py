"""Layers of the MMDiT outside its blocks' own arithmetic."""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from omnihuman_core.contracts import Ops, Segments
from omnihuman_core.mmdit.config import MMDiTConfig
from omnihuman_core.ops import rms_norm


def patchify(latents: Tensor, patch_size: tuple[int, int, int]) -> Tensor:
    """Flatten patches of ``(B, C, t, h, w)`` to ``(B, L, C * patch)``, channels outermost as a convolution has them."""
    pt, ph, pw = patch_size
    return rearrange(latents, "B C (t pt) (h ph) (w pw) -> B (t h w) (C pt ph pw)", pt=pt, ph=ph, pw=pw)


class PatchEmbed3D(nn.Module):
    """Latents to tokens, with pose features as extra input channels.

    The extra channels have a weight of their own, ``W [x; p] = W_x x + W_p p``: zero at the start, so that a
    text-to-video checkpoint gives its old output bit for bit.
    """

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        volume = math.prod(config.patch_size)
        self.proj = nn.Linear(config.latent_channels * volume, config.hidden_size)
        self.pose_proj = (
            nn.Linear(config.pose_channels * volume, config.hidden_size, bias=False) if config.pose_channels else None
        )

    def forward(self, latents: Tensor, pose: Tensor | None = None) -> Tensor:
        """``latents (B, C, t, h, w)``, ``pose (B, C_pose, t, h, w)`` -> ``(B, L, D)``."""
        tokens: Tensor = self.proj(patchify(latents, self.patch_size))
        if self.pose_proj is not None and pose is not None:
            tokens = tokens + self.pose_proj(patchify(pose, self.patch_size))
        return tokens


class MLP(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, in_size: int, hidden_size: int, out_size: int, activation: nn.Module) -> None:
        super().__init__()
        self.up = nn.Linear(in_size, hidden_size)
        self.activation = activation
        self.down = nn.Linear(hidden_size, out_size)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in_size)`` -> ``(..., out_size)``."""
        out: Tensor = self.down(self.activation(self.up(x)))
        return out


def sinusoid(values: Tensor, size: int) -> Tensor:
    """Cosines then sines of ``values * 10000 ** (-i / (size / 2))``; ``(B,)`` -> ``(B, size)`` fp32."""
    half = size // 2
    frequencies = torch.exp(torch.arange(half, device=values.device, dtype=torch.float32) * (-math.log(10000) / half))
    angles = values.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimestepEmbedder(nn.Module):
    """A scalar per sample to a vector; the scalar is multiplied by 1000 as in HunyuanVideo."""

    frequencies = 256

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = MLP(self.frequencies, hidden_size, hidden_size, nn.SiLU())

    def forward(self, values: Tensor) -> Tensor:
        """``(B,)`` -> ``(B, D)``."""
        out: Tensor = self.mlp(sinusoid(1000 * values.float(), self.frequencies).to(self.mlp.up.weight.dtype))
        return out


class Modulation(nn.Module):
    """Condition vectors, after their SiLU, to shifts, scales and gates: an own projection."""

    def __init__(self, hidden_size: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.proj = nn.Linear(hidden_size, count * hidden_size)

    def project(self, condition: Tensor) -> Tensor:
        """``(B, segments, D)`` -> ``(B, segments, count * D)``."""
        # As a matrix: torch multiplies a part of a batch in one kernel only in two dimensions.
        out: Tensor = self.proj(rearrange(condition, "B S D -> (B S) D"))
        return rearrange(out, "(B S) D -> B S D", B=condition.shape[0])  # (B, segments, count * D)

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        """``(B, segments, D)`` -> ``count`` times ``(B, segments, D)``."""
        return self.project(condition).chunk(self.count, dim=-1)


class ModulationTable(nn.Module):
    """Shifts, scales and gates from the projection that all blocks share, plus a learned table."""

    def __init__(self, hidden_size: int, count: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(count * hidden_size))
        self.count = count

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        """``(B, segments, 6 D)`` -> ``count`` times ``(B, segments, D)``."""
        width = self.table.shape[0]
        return (condition[..., :width] + self.table.to(condition.dtype)).chunk(self.count, dim=-1)


def block_modulation(config: MMDiTConfig, count: int) -> Modulation | ModulationTable:
    """The modulation that a block of this architecture has."""
    kind = Modulation if config.modulation == "per_block" else ModulationTable
    return kind(config.hidden_size, count)


class QKNorm(nn.Module):
    """Weights of the per-head RMSNorms of q and k; the op applies them."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.q_weight = nn.Parameter(torch.ones(head_dim))
        self.k_weight = nn.Parameter(torch.ones(head_dim))


@dataclass(frozen=True, kw_only=True)
class HeardClip:
    """What a layer of audio cross-attention makes of a clip's audio: the same at every noise level.

    Attributes:
        k: ``(B, t, A, N, K)``, normalised.
        v: ``(B, t, A, N, K)``.
        shift: ``(D,)``: with ``scale``, the affine part of the layer's norm in the form of a modulation.
        scale: ``(D,)``.
    """

    k: Tensor
    v: Tensor
    shift: Tensor
    scale: Tensor


# Audio tokens -> layer -> (state of its weights, what it made of them). An entry goes when its tokens go.
_HEARD: MutableMapping[Tensor, WeakKeyDictionary[nn.Module, tuple[list[Any], HeardClip]]] = WeakTensorKeyDictionary()


class FrameCrossAttention(nn.Module):
    """Tokens of each latent frame attend the audio tokens of that frame (paper section 3.2, audio conditioning)."""

    def __init__(self, config: MMDiTConfig, audio_dim: int, ops: Ops) -> None:
        super().__init__()
        width = config.hidden_size
        self.ops = ops
        self.num_heads = config.num_heads
        self.eps = config.norm_eps
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(audio_dim, 2 * width)
        self.qk_norm = QKNorm(config.head_dim)
        self.out = nn.Linear(width, width)

    def train(self, mode: bool = True) -> Self:
        """Forget the clips, too: some trainers change weights in ways that leave no trace on them."""
        for layers in list(_HEARD.values()):
            layers.pop(self, None)
        return super().train(mode)

    def hear(self, audio: Tensor) -> HeardClip:
        """Keys, values and affine for ``audio (B, t, A, D_audio)``; kept for the next step while sampling."""
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._hear(audio)
        used = [audio, *self.kv.parameters(), *self.qk_norm.parameters(), *self.norm.parameters()]
        state = [(id(x), x.dtype, x.device, 0 if x.is_inference() else x._version) for x in used]
        layers = _HEARD.setdefault(audio, WeakKeyDictionary())
        known = layers.get(self)
        if known is None or known[0] != state:
            known = layers[self] = state, self._hear(audio)
        return known[1]

    def _hear(self, audio: Tensor) -> HeardClip:
        k, v = rearrange(self.kv(audio), "B t A (two N K) -> two B t A N K", two=2, N=self.num_heads)
        k = rms_norm(k, self.qk_norm.k_weight, eps=self.eps)
        return HeardClip(k=k, v=v, shift=self.norm.bias, scale=self.norm.weight - 1)

    def forward(self, normed: Tensor, clip: HeardClip) -> Tensor:
        """What to add to the tokens of the motion and video frames.

        Args:
            normed: ``(B, t * P, D)``, these tokens after this layer's norm.
            clip: The audio, by :meth:`hear`.

        Returns:
            ``(B, t * P, D)``.
        """
        # A part of a batch: torch copies it in any case, and then adds the bias in a kernel of its own.
        q = self.q(normed.contiguous())
        q = rearrange(q, "B (t P) (N K) -> B t P N K", t=clip.k.shape[1], N=self.num_heads)
        out = self.ops.frame_cross_attention(q, clip.k, clip.v, self.qk_norm.q_weight, eps=self.eps)
        change: Tensor = self.out(rearrange(out, "B t P N K -> B (t P) (N K)"))  # (B, t * P, D)
        return change


class FinalLayer(nn.Module):
    """Modulated norm, projection to patches, and patches to latents."""

    def __init__(self, config: MMDiTConfig, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.eps = config.norm_eps
        self.patch_size = config.patch_size
        self.modulation = Modulation(config.hidden_size, 2)
        self.proj = nn.Linear(config.hidden_size, config.latent_channels * math.prod(config.patch_size))

    def forward(self, x: Tensor, condition: Tensor, grid: Segments) -> Tensor:
        """``x (B, t * h * w, D)``, ``condition (B, 1, D)``, ``grid (t, h, w)`` in tokens -> ``(B, C, t, h, w)``."""
        shift, scale = self.modulation(condition)
        patches = self.proj(self.ops.modulated_norm(x, shift, scale, segments=(x.shape[1],), eps=self.eps))
        (t, h, w), (pt, ph, pw) = grid, self.patch_size
        latents: Tensor = rearrange(
            patches, "B (t h w) (C pt ph pw) -> B C (t pt) (h ph) (w pw)", t=t, h=h, w=w, pt=pt, ph=ph, pw=pw
        )
        return latents
