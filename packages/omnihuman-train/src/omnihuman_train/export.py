"""From a trained run to a model directory that the inference package reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omnihuman_core.model_dir import save_model
from omnihuman_train.__about__ import __version__
from omnihuman_train.config import TrainConfig
from omnihuman_train.model import OmniModel, build


def export(config: TrainConfig, model: OmniModel, vae: Any, folder: Path) -> None:
    """Write ``folder`` with every component in bf16.

    Args:
        config: The run; ``config.generation`` says how the model is used.
        model: Trained backbone and encoders.
        vae: The VAE whose latents the backbone was trained on.
        folder: Target; replaced when it is a model directory already.
    """
    components: dict[str, tuple[str, Any]] = {
        "vae": ("causal", vae),
        "backbone": ("mmdit", model.backbone),
        "text_encoder": ("text_bytes", model.text_encoder),
        "audio_encoder": ("audio", model.audio_encoder),
        "pose_encoder": ("pose_guider", model.pose_encoder),
    }
    for name, plugin_name in (("text", "text_bytes"), ("audio", "log_mel"), ("pose", "skeleton")):
        extractor = build("feature_extractor", plugin_name, config.preset)
        components[f"{name}_extractor"] = (plugin_name, extractor)
    save_model(folder, name=config.name, version=__version__, generation=config.generation, components=components)
