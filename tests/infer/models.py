"""A random model of toy widths, saved as a model directory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from omnihuman_conditions.audio.encoder import AudioEncoder, AudioEncoderConfig
from omnihuman_conditions.audio.log_mel import LogMelConfig, LogMelExtractor
from omnihuman_conditions.pose.guider import PoseGuider, PoseGuiderConfig
from omnihuman_conditions.pose.skeleton import SkeletonConfig, SkeletonExtractor
from omnihuman_conditions.text import (
    ByteTextEncoder,
    ByteTextEncoderConfig,
    ByteTextExtractor,
    ByteTextExtractorConfig,
)
from omnihuman_core.mmdit import MMDiT, presets
from omnihuman_core.model_dir import GenerationSettings, save_model
from omnihuman_vae import CausalVideoVAE
from omnihuman_vae import presets as vae_presets

LATENT_CHANNELS, TEXT, AUDIO, POSE = 4, 8, 8, 4

SETTINGS = GenerationSettings(
    segment_frames=17,
    motion_frames=5,
    area=48 * 48,
    max_aspect=2.0,
    size_multiple=16,
    num_steps=2,
    guidance_scale=3.0,
    guidance_schedule="constant",
    guidance_end_scale=1.0,
    sigma_shift=1.0,
    sampler="euler",
)


def make_components(**mmdit: Any) -> dict[str, tuple[str, Any]]:
    """Components by name, each with its plugin's name."""
    torch.manual_seed(0)
    vae = dataclasses.replace(
        vae_presets.tiny(),
        latent_channels=LATENT_CHANNELS,
        channels=(8, 8),
        encoder_blocks=(1, 1),
        decoder_blocks=(1, 1),
    )
    backbone = {
        "latent_channels": LATENT_CHANNELS,
        "hidden_size": 16,
        "num_heads": 1,
        "num_double_blocks": 1,
        "num_single_blocks": 1,
        "rope_dims": (4, 6, 6),
        "text_dim": TEXT,
        "pooled_dim": TEXT,
        "audio_dim": AUDIO,
        "audio_blocks": (0, 1),
        "pose_channels": POSE,
    }
    return {
        "vae": ("causal", CausalVideoVAE(vae)),
        "backbone": ("mmdit", shaken(MMDiT(dataclasses.replace(presets.tiny(), **{**backbone, **mmdit})))),
        "text_extractor": ("text_bytes", ByteTextExtractor(ByteTextExtractorConfig(max_words=6, max_bytes=6))),
        "text_encoder": (
            "text_bytes",
            ByteTextEncoder(
                ByteTextEncoderConfig(max_words=6, max_bytes=6, hidden_dim=8, token_dim=TEXT, pooled_dim=TEXT)
            ),
        ),
        "audio_extractor": ("log_mel", LogMelExtractor(LogMelConfig.tiny())),
        "audio_encoder": (
            "audio",
            AudioEncoder(dataclasses.replace(AudioEncoderConfig.tiny(), hidden_dim=16, token_dim=AUDIO)),
        ),
        "pose_extractor": ("skeleton", SkeletonExtractor(SkeletonConfig.tiny())),
        "pose_encoder": (
            "pose_guider",
            PoseGuider(dataclasses.replace(PoseGuiderConfig.tiny(), hidden_dim=8, out_channels=POSE)),
        ),
    }


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """Give every weight some noise: at construction the paths of the conditions are zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def save_toy(
    directory: Path, *, leave_out: tuple[str, ...] = (), mmdit: dict[str, Any] | None = None, **settings: Any
) -> Path:
    components = {name: made for name, made in make_components(**(mmdit or {})).items() if name not in leave_out}
    save_model(
        directory,
        name="toy",
        version="1",
        generation=dataclasses.replace(SETTINGS, **settings),
        components=components,
        dtype=torch.float32,
    )
    return directory
