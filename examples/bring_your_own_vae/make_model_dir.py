"""Write an untrained model directory round the Haar VAE: python make_model_dir.py DIR."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from haar_vae import HaarVAE, HaarVAEConfig

from omnihuman_core.mmdit import MMDiT
from omnihuman_core.mmdit import tiny as tiny_backbone
from omnihuman_core.model_dir import GenerationSettings, save_model
from omnihuman_core.plugins import plugin


def tiny(kind: str, name: str, **changes: Any) -> tuple[str, Any]:
    """A component in its ``tiny`` preset, as ``save_model`` takes it: the name of its plugin, and the plugin built."""
    made_by = plugin(kind, name)
    return name, made_by(replace(made_by.config_class.tiny(), **changes))


def make_model_dir(directory: str | Path) -> None:
    """Write a model whose VAE is the plugin ``haar`` and whose other parts are the stack's own, untrained.

    Args:
        directory: The model directory to make.
    """
    torch.manual_seed(0)
    vae = HaarVAE(HaarVAEConfig(temporal_stride=2, spatial_stride=4, mean_std=0.5, detail_std=0.125))
    spec = vae.latent_spec
    # Everything that depends on the VAE takes its numbers from latent_spec.
    backbone = MMDiT(
        replace(
            tiny_backbone(),
            latent_channels=spec.channels,
            num_double_blocks=1,
            num_single_blocks=1,
            audio_blocks=(0, 1),
        )
    )
    save_model(
        directory,
        name="haar",
        version="0.1.0",
        generation=GenerationSettings(
            segment_frames=spec.pixel_frames(9),
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
        components={
            "vae": ("haar", vae),
            "backbone": ("mmdit", backbone),
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
        },
    )


if __name__ == "__main__":
    make_model_dir(sys.argv[1])
