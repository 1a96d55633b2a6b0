"""From a trained run to a model directory that the inference package reads."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnihuman_core.contracts.importer import ImportedComponent
from omnihuman_core.importing import read_model_dir, write_components
from omnihuman_core.model_dir import save_model
from omnihuman_train.__about__ import __version__
from omnihuman_train.config import TrainConfig
from omnihuman_train.model import OmniModel, build
from omnihuman_train.stage_config import PARTS, StageConfig, write_record


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


def export_stage(
    config: StageConfig,
    weights: Mapping[str, Tensor],
    directory: Path,
    *,
    vae: str,
    extractors: Sequence[ImportedComponent],
) -> None:
    """Write a model directory in bf16: what was trained, what it is used with, and all else that ``start`` holds.

    Args:
        config: The stage.
        weights: State of the trained :class:`~omnihuman_train.model.OmniModel`, whole.
        directory: Made, or replaced.
        vae: Model directory with the VAE that made the latents.
        extractors: What the data was encoded with.
    """
    trained = [_part(config, name, weights) for name in PARTS]
    skeleton = config.model.pose_extractor
    settings = skeleton.resolve("feature_extractor")
    parts = {part.component: part for part in trained}
    parts["pose_extractor"] = ImportedComponent(component="pose_extractor", plugin=skeleton.plugin, config=settings)
    parts |= {part.component: part for part in extractors}
    # Of the VAE's directory, the VAE alone.
    parts |= {part.component: part for part in read_model_dir(vae) if part.component == "vae"}
    for part in read_model_dir(config.start) if config.start is not None else []:
        parts.setdefault(part.component, part)
    staged = directory.with_name(f".{directory.name}.new")
    shutil.rmtree(staged, ignore_errors=True)
    write_components(
        staged,
        [*parts.values()],
        name=config.name,
        version=__version__,
        generation=config.generation,
        dtype=torch.bfloat16,
    )
    write_record(staged, config.stages)
    shutil.rmtree(directory, ignore_errors=True)
    staged.rename(directory)


def _part(config: StageConfig, name: str, weights: Mapping[str, Tensor]) -> ImportedComponent:
    kind, chosen = config.model.component(name)
    state = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}

    def tensors() -> Iterator[tuple[str, Tensor]]:
        yield from state.items()

    like = {key: value.to("meta") for key, value in state.items()}
    return ImportedComponent(
        component=name, plugin=chosen.plugin, config=chosen.resolve(kind), like=like, tensors=tensors
    )
