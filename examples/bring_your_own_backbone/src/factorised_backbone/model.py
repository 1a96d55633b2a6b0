"""Convolutions in space, attention in time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from omnihuman_core.contracts import CONDITIONS, BackboneSpec, Conditioning, Ops
from omnihuman_core.plugins import resolve_ops


@dataclass(frozen=True, kw_only=True)
class FactorisedBackboneConfig:
    """Everything that fixes the weights.

    Attributes:
        latent_channels: Channels ``C`` of the latents.
        hidden_size: Width ``D``, even.
        num_heads: Heads ``N`` of the attention in time.
        num_blocks: Blocks.
        text_dim: Width of text tokens.
        pooled_dim: Width of the pooled text vector, or None.
        audio_dim: Width of audio tokens.
        pose_channels: Channels of pose features.
    """

    latent_channels: int
    hidden_size: int
    num_heads: int
    num_blocks: int
    text_dim: int
    pooled_dim: int | None
    audio_dim: int
    pose_channels: int

    def __post_init__(self) -> None:
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"FactorisedBackboneConfig.hidden_size must be a multiple of 2 * num_heads = {2 * self.num_heads}, "
                f"got {self.hidden_size}"
            )


class FactorisedBackbone(nn.Module):
    """Implements ``omnihuman_core.contracts.Backbone``; takes every condition and any latent size."""

    config_class: ClassVar[type[FactorisedBackboneConfig]] = FactorisedBackboneConfig

    def __init__(self, config: FactorisedBackboneConfig, ops: Ops | None = None) -> None:
        super().__init__()
        self.config = config
        ops = ops or resolve_ops()
        width = config.hidden_size
        self.latents_in = nn.Conv3d(config.latent_channels, width, 1)
        self.reference_in = nn.Conv3d(config.latent_channels, width, 1)
        self.pose_in = nn.Conv3d(config.pose_channels, width, 1)
        self.sigma_in = nn.Linear(width, width)
        self.text_in = nn.Linear(config.text_dim, width)
        self.pooled_in = None if config.pooled_dim is None else nn.Linear(config.pooled_dim, width)
        self.audio_in = nn.Linear(config.audio_dim, width)
        self.blocks = nn.ModuleList(FactorisedBlock(width, config.num_heads, ops) for _ in range(config.num_blocks))
        self.velocity_out = nn.Conv3d(width, config.latent_channels, 1)

    @property
    def spec(self) -> BackboneSpec:
        config = self.config
        return BackboneSpec(
            latent_channels=config.latent_channels,
            spatial_multiple=1,
            temporal_multiple=1,
            conditions=frozenset(CONDITIONS),
            text_dim=config.text_dim,
            pooled_dim=config.pooled_dim,
            audio_dim=config.audio_dim,
            pose_channels=config.pose_channels,
        )

    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Velocity ``(B, C, t, h, w)``."""
        self.spec.check(latents, conditioning)
        frames = latents.shape[2]
        levels = repeat(sigma, "B -> B t", t=frames)
        if conditioning.motion is not None:
            clean = conditioning.motion.latents
            latents = torch.cat([clean, latents], dim=2)  # (B, C, m + t, h, w)
            levels = torch.cat([levels.new_zeros(len(levels), clean.shape[2]), levels], dim=1)  # (B, m + t)
        x = self.latents_in(latents)
        if conditioning.reference is not None:
            x = x + self.reference_in(conditioning.reference.latents).mean(2, keepdim=True)
        if conditioning.pose is not None:
            x = x + self.pose_in(conditioning.pose.features)
        modulation = self._modulation(levels, conditioning).to(x.dtype)
        for block in self.blocks:
            x = block(x, modulation)
        velocity: Tensor = self.velocity_out(x[:, :, -frames:])
        return velocity

    def _modulation(self, levels: Tensor, conditioning: Conditioning) -> Tensor:
        """Noise level, text and audio of each frame, ``(B, m + t, D)``."""
        total: Tensor = self.sigma_in(_sinusoids(1000 * levels, self.config.hidden_size).to(self.sigma_in.weight.dtype))
        if conditioning.text is not None:
            mask = conditioning.text.mask[..., None]
            text = (self.text_in(conditioning.text.tokens) * mask).sum(1) / mask.sum(1).clamp_min(1)
            if self.pooled_in is not None and conditioning.text.pooled is not None:
                text = text + self.pooled_in(conditioning.text.pooled)
            total = total + text[:, None]
        if conditioning.audio is not None:
            total = total + self.audio_in(conditioning.audio.tokens).mean(2)
        return F.silu(total)


class FactorisedBlock(nn.Module):
    """One convolution in space and one attention in time, both behind a modulated norm."""

    def __init__(self, width: int, num_heads: int, ops: Ops) -> None:
        super().__init__()
        self.num_heads, self.attention = num_heads, ops.attention
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.modulation = nn.Linear(width, 4 * width)
        self.space = nn.Sequential(nn.Conv2d(width, 2 * width, 3, padding=1), nn.SiLU(), nn.Conv2d(2 * width, width, 1))
        self.qkv = nn.Linear(width, 3 * width)
        self.time = nn.Linear(width, width)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """``x (B, D, t, h, w)`` and ``modulation (B, t, D)`` to ``(B, D, t, h, w)``."""
        batch, _, frames, height, width = x.shape
        shift_a, scale_a, shift_b, scale_b = rearrange(self.modulation(modulation), "B t (k D) -> k B t 1 1 D", k=4)
        x = rearrange(x, "B D t h w -> B t h w D")
        y = self.norms[0](x) * (1 + scale_a) + shift_a
        y = self.space(rearrange(y, "B t h w D -> (B t) D h w"))
        x = x + rearrange(y, "(B t) D h w -> B t h w D", B=batch)
        y = self.norms[1](x) * (1 + scale_b) + shift_b
        y = rearrange(y, "B t h w D -> (B h w) t D")
        y = y + _sinusoids(torch.arange(frames, device=x.device), y.shape[-1]).to(y.dtype)
        q, k, v = rearrange(self.qkv(y), "b t (k N d) -> k b t N d", k=3, N=self.num_heads)
        y = self.time(rearrange(self.attention(q, k, v), "b t N d -> b t (N d)"))
        x = x + rearrange(y, "(B h w) t D -> B t h w D", B=batch, h=height, w=width)
        return rearrange(x, "B t h w D -> B D t h w")


def _sinusoids(values: Tensor, width: int) -> Tensor:
    """``(..., width)`` of sines and cosines of ``values`` at geometric frequencies."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 2, device=values.device) / (width // 2))
    angles = values.float()[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
