"""Random public models of toy size, saved by diffusers in the format in which the real ones are published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def hunyuan_transformer(**changes: Any) -> Any:
    import diffusers

    settings = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "num_refiner_layers": 2,
        "text_embed_dim": 12,
        "pooled_projection_dim": 10,
        "rope_axes_dim": (4, 6, 6),
    }
    torch.manual_seed(0)
    model = diffusers.HunyuanVideoTransformer3DModel(**(settings | changes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def save_hunyuan_transformer(folder: Path, *, shard: str = "10GB", **changes: Any) -> Any:
    model = hunyuan_transformer(**changes)
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def save_hunyuan_15_transformer(folder: Path) -> Any:
    import diffusers

    torch.manual_seed(0)
    model = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2, num_refiner_layers=2,
        text_embed_dim=12, text_embed_2_dim=10, image_embed_dim=8, rope_axes_dim=(4, 6, 6),
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return model


def wan_vae(folder: Path) -> Any:
    import diffusers

    torch.manual_seed(0)
    model = diffusers.AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    ).eval()  # fmt: skip
    model.save_pretrained(folder)
    return model
