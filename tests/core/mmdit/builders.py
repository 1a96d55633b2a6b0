"""Small architectures and conditions for the tests of the MMDiT."""

from dataclasses import replace

import torch

from omnihuman_core.contracts import (
    AudioCondition,
    Conditioning,
    MotionCondition,
    PoseCondition,
    ReferenceCondition,
    TextCondition,
)
from omnihuman_core.mmdit import MMDiT, MMDiTConfig, hunyuan_video


def config(**changes) -> MMDiTConfig:
    """HunyuanVideo's structure, every path on, at toy size."""
    toy = {
        "latent_channels": 4,
        "hidden_size": 32,
        "num_heads": 2,
        "num_double_blocks": 2,
        "num_single_blocks": 2,
        "rope_dims": (4, 6, 6),
        "text_dim": 12,
        "pooled_dim": 10,
        "audio_dim": 6,
        "audio_blocks": (0, 1, 2, 3),
        "pose_channels": 3,
        "segment_embedding": True,
    }
    return replace(hunyuan_video(), **(toy | changes))


def build(architecture: MMDiTConfig, seed: int = 0) -> MMDiT:
    """A model without any zero weight, so that every path is felt."""
    torch.manual_seed(seed)
    model = MMDiT(architecture).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def inputs(batch=2, frames=3, motion=2, tokens=5):
    """Latents, levels and a full set of conditions."""
    latents, sigma = torch.randn(batch, 4, frames, 4, 6), torch.rand(batch)
    conditioning = Conditioning(
        text=TextCondition(
            tokens=torch.randn(batch, tokens, 12),
            mask=torch.arange(tokens) < torch.arange(tokens, tokens - batch, -1)[:, None].clamp(min=1),
            pooled=torch.randn(batch, 10),
        ),
        audio=AudioCondition(tokens=torch.randn(batch, motion + frames, 2, 6)),
        pose=PoseCondition(features=torch.randn(batch, 3, motion + frames, 4, 6)),
        reference=ReferenceCondition(latents=torch.randn(batch, 4, 1, 4, 6)),
        motion=MotionCondition(latents=torch.randn(batch, 4, motion, 4, 6)),
    )
    return latents, sigma, conditioning
