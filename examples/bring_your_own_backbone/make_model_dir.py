"""Write an untrained model directory round the factorised backbone: python make_model_dir.py DIR."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from factorised_backbone import FactorisedBackbone, FactorisedBackboneConfig

from omnihuman_core.config import from_table
from omnihuman_core.model_dir import GenerationSettings, save_model
from omnihuman_core.plugins import plugin

# The stack's own VAE at a small width, as its config.toml would have it.
VAE = {
    "in_channels": 3,
    "latent_channels": 16,
    "patch_size": [4, 4, 4],
    "channels": [32, 64],
    "encoder_blocks": [1, 1],
    "decoder_blocks": [1, 1],
    "spatial_downsample": [True],
    "temporal_downsample": [False],
    "temporal_kernel": 3,
    "convolution": "factored",
    "tubelet_skip": True,
    "norm_eps": 1e-6,
    "initial_logvar": -5.0,
}


def tiny(kind: str, name: str, **changes: Any) -> tuple[str, Any]:
    """A component in its ``tiny`` preset, as ``save_model`` takes it: the name of its plugin, and the plugin built."""
    made_by = plugin(kind, name)
    return name, made_by(replace(made_by.config_class.tiny(), **changes))


def make_model_dir(directory: str | Path) -> None:
    """Write a model whose backbone is the plugin ``factorised`` and whose other parts are the stack's own, untrained.

    Args:
        directory: The model directory to make.
    """
    torch.manual_seed(0)
    causal = plugin("video_vae", "causal")
    vae = causal(from_table(causal.config_class, VAE))
    spec = vae.latent_spec
    components = {
        "vae": ("causal", vae),
        "text_extractor": tiny("feature_extractor", "text_bytes"),
        "text_encoder": tiny("condition_encoder", "text_bytes"),
        "audio_extractor": tiny("feature_extractor", "log_mel"),
        "audio_encoder": tiny("condition_encoder", "audio", temporal_stride=spec.temporal_stride),
        "pose_extractor": tiny("feature_extractor", "skeleton"),
        "pose_encoder": tiny(
            "condition_encoder",
            "pose_guider",
            temporal_stride=spec.temporal_stride,
            spatial_stride=spec.spatial_stride,
        ),
    }
    text, audio, pose = (components[f"{name}_encoder"][1].config for name in ("text", "audio", "pose"))
    backbone = FactorisedBackbone(
        FactorisedBackboneConfig(
            latent_channels=spec.channels,
            hidden_size=64,
            num_heads=4,
            num_blocks=2,
            text_dim=text.token_dim,
            pooled_dim=text.pooled_dim,
            audio_dim=audio.token_dim,
            pose_channels=pose.out_channels,
        )
    )
    save_model(
        directory,
        name="factorised",
        version="0.1.0",
        generation=GenerationSettings(
            segment_frames=spec.pixel_frames(5),
            motion_frames=5,
            area=48 * 48,
            max_aspect=2.0,
            size_multiple=spec.spatial_stride * backbone.spec.spatial_multiple,
            num_steps=2,
            guidance_scale=3.0,
            guidance_schedule="constant",
            guidance_end_scale=1.0,
            sigma_shift=1.0,
            sampler="euler",
        ),
        components=components | {"backbone": ("factorised", backbone)},
    )


if __name__ == "__main__":
    make_model_dir(sys.argv[1])
