"""Small random VAEs of the public implementation; nothing here is trained."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from omnihuman_core.testing.numerics import randomize
from omnihuman_vae.adapters import (
    DiffusersVAEConfig,
    DiffusersVideoVAE,
    HunyuanVideoVAE,
    HunyuanVideoVAEConfig,
    WanVAE,
    WanVAEConfig,
)

pytest.importorskip("diffusers")

WAN = WanVAEConfig(
    latent_channels=4,
    base_channels=4,
    channel_multipliers=(1, 2, 4, 4),
    blocks=2,
    temporal_downsample=(False, True, True),
    latents_mean=(0.1, -0.2, 0.3, 0.0),
    latents_std=(1.0, 2.0, 1.5, 0.7),
)
HUNYUAN = HunyuanVideoVAEConfig(
    latent_channels=4,
    channels=(8, 8, 16, 16),
    blocks=2,
    norm_groups=4,
    spatial_stride=8,
    mid_attention=True,
    scaling_factor=0.476986,
)

# Small forms of the published configurations.
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "hunyuan_video_1_5": (
        "AutoencoderKLHunyuanVideo15",
        {"latent_channels": 4, "block_out_channels": [8, 8, 16, 16, 16], "layers_per_block": 1},
    ),
    "wan_2_2": (
        "AutoencoderKLWan",
        {
            "base_dim": 4,
            "decoder_base_dim": 8,
            "z_dim": 4,
            "num_res_blocks": 1,
            "temperal_downsample": [False, True, True],
            "is_residual": True,
            "in_channels": 12,
            "out_channels": 12,
            "patch_size": 2,
            "scale_factor_spatial": 16,
            "latents_mean": [0.1, -0.2, 0.3, 0.0],
            "latents_std": [0.5, 2.0, 1.5, 0.7],
        },
    ),
    "ltx": (
        "AutoencoderKLLTXVideo",
        {
            "latent_channels": 8,
            "block_out_channels": [8, 8, 8, 8],
            "decoder_block_out_channels": [8, 8, 8, 8],
            "layers_per_block": [1, 1, 1, 1, 1],
            "decoder_layers_per_block": [1, 1, 1, 1, 1],
        },
    ),
    "cogvideox": (
        "AutoencoderKLCogVideoX",
        {
            "latent_channels": 4,
            "block_out_channels": [8, 8, 8, 8],
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "scaling_factor": 0.7,
        },
    ),
    "mochi": (
        "AutoencoderKLMochi",
        {
            "latent_channels": 4,
            "encoder_block_out_channels": [32, 32, 32, 32],
            "decoder_block_out_channels": [32, 32, 32, 32],
            "layers_per_block": [1, 1, 1, 1, 1],
            "latents_mean": [0.1, -0.2, 0.3, 0.0],
            "latents_std": [0.9, 1.1, 1.5, 0.7],
        },
    ),
}


def reference(name: str, **changes: Any) -> Any:
    """The public implementation with random weights."""
    import diffusers

    if name == "wan":
        vae = diffusers.AutoencoderKLWan(
            base_dim=WAN.base_channels,
            z_dim=WAN.latent_channels,
            latents_mean=list(WAN.latents_mean),
            latents_std=list(WAN.latents_std),
            **changes,
        )
    else:
        vae = diffusers.AutoencoderKLHunyuanVideo(
            latent_channels=HUNYUAN.latent_channels,
            block_out_channels=HUNYUAN.channels,
            norm_num_groups=HUNYUAN.norm_groups,
            **changes,
        )
    randomize(vae)
    return vae.eval()


def native(name: str) -> WanVAE | HunyuanVideoVAE:
    """Our class with the weights of :func:`reference`."""
    vae = WanVAE(WAN) if name == "wan" else HunyuanVideoVAE(HUNYUAN)
    vae.load_state_dict(reference(name).state_dict())
    return vae.eval()


def other(name: str, **changes: Any) -> DiffusersVideoVAE:
    """A VAE that runs through diffusers, with random weights."""
    class_name, arguments = OTHERS[name]
    config = DiffusersVAEConfig(class_name=class_name, arguments=json.dumps(arguments | changes))
    vae = DiffusersVideoVAE(config)
    randomize(vae)
    return vae.eval()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
