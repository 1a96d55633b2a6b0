"""Initial weights for training from scratch (DiT's scheme)."""

from __future__ import annotations

import torch
from torch import nn

from omnihuman_core.mmdit.blocks import SingleStreamBlock
from omnihuman_core.mmdit.layers import FinalLayer, FrameCrossAttention, Modulation, PatchEmbed3D, TimestepEmbedder


@torch.no_grad()
def init_weights(model: nn.Module) -> None:
    """Xavier for linear layers; zero for modulations, the final projection, and the audio and pose paths' last step.

    Zero modulations make every block the identity at the start; zero audio and pose outputs leave a pretrained base as
    it was.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, SingleStreamBlock):
            # Packed projections: each part has the scale it would have alone.
            for part in module.linear1.weight.split_with_sizes(module.sizes):
                nn.init.xavier_uniform_(part)
        elif isinstance(module, TimestepEmbedder):
            nn.init.normal_(module.mlp.up.weight, std=0.02)
            nn.init.normal_(module.mlp.down.weight, std=0.02)
        elif isinstance(module, Modulation | FinalLayer):
            nn.init.zeros_(module.proj.weight)
        elif isinstance(module, FrameCrossAttention):
            nn.init.zeros_(module.out.weight)
        elif isinstance(module, PatchEmbed3D) and module.pose_proj is not None:
            nn.init.zeros_(module.pose_proj.weight)
