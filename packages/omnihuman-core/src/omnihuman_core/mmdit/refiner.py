"""The text branch before the blocks: HunyuanVideo's token refiner."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from omnihuman_core.contracts import Ops
from omnihuman_core.mmdit.config import MMDiTConfig
from omnihuman_core.mmdit.layers import MLP, Modulation, TimestepEmbedder


class TokenRefinerBlock(nn.Module):
    """Self-attention and MLP over text tokens, both gated by the condition vector."""

    def __init__(self, config: MMDiTConfig, ops: Ops) -> None:
        super().__init__()
        width = config.hidden_size
        self.ops = ops
        self.num_heads = config.num_heads
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = MLP(width, config.mlp_size, width, nn.SiLU())
        self.modulation = Modulation(width, 2)

    def forward(self, x: Tensor, condition: Tensor, mask: Tensor) -> Tensor:
        """``x (B, S, D)``, ``condition (B, 1, D)``, ``mask (B, S)`` -> ``(B, S, D)``."""
        attention_gate, mlp_gate = self.modulation(condition)
        qkv = rearrange(self.qkv(self.norm1(x)), "B S (three N K) -> three B S N K", three=3, N=self.num_heads)
        q, k, v = qkv.unbind()
        attended = rearrange(self.ops.attention(q, k, v, mask=mask), "B S N K -> B S (N K)")
        x = torch.addcmul(x, self.out(attended), attention_gate)
        return torch.addcmul(x, self.mlp(self.norm2(x)), mlp_gate)


class TokenRefiner(nn.Module):
    """Projects text tokens to the model width and refines them, conditioned on noise level and mean token."""

    def __init__(self, config: MMDiTConfig, text_dim: int, ops: Ops) -> None:
        super().__init__()
        width = config.hidden_size
        self.proj = nn.Linear(text_dim, width)
        self.sigma_embed = TimestepEmbedder(width)
        self.mean_embed = MLP(text_dim, width, width, nn.SiLU())
        self.blocks = nn.ModuleList(TokenRefinerBlock(config, ops) for _ in range(config.text_refiner_depth))

    def forward(self, tokens: Tensor, mask: Tensor, sigma: Tensor) -> Tensor:
        """``tokens (B, S, D_text)``, ``mask (B, S)``, ``sigma (B,)`` -> ``(B, S, D)``."""
        weights = mask.to(torch.float32)[..., None]
        mean = (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        condition = F.silu(self.sigma_embed(sigma) + self.mean_embed(mean.to(tokens.dtype)))[:, None]  # (B, 1, D)
        # The first token is always attended: a softmax over no key at all has no value.
        keys = mask | (torch.arange(mask.shape[1], device=mask.device) == 0)
        x: Tensor = self.proj(tokens)
        for block in self.blocks:
            x = block(x, condition, keys)
        return x
