"""Reads published video VAEs as the VAE of a model directory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from omnihuman_core.checkpoint import read_layout
from omnihuman_core.contracts.importer import ImportedComponent
from omnihuman_core.importing import settings
from omnihuman_vae.adapters.diffusers_video import CLASSES, DiffusersVideoVAE
from omnihuman_vae.adapters.hunyuan_video import HunyuanVideoVAE
from omnihuman_vae.adapters.loading import NATIVE, load, load_hunyuan_video, load_wan
from omnihuman_vae.adapters.public_files import weight_files
from omnihuman_vae.adapters.wan import WanVAE

# A tensor that only this file of the authors has, by the loader for it.
_ORIGINALS: dict[str, Callable[..., nn.Module]] = {
    "encoder.downsamples.0.residual.0.gamma": load_wan,
    "vae.encoder.mid_block.resnets.0.conv1.conv.weight": load_hunyuan_video,
}


def import_vae(source: Path) -> Sequence[ImportedComponent]:
    """The VAE of a diffusers folder (``vae`` alone or the whole pipeline) or of its authors' file.

    A VAE is small next to a backbone: it is loaded whole.

    Raises:
        ValueError: a file is missing or damaged, or a weight has another shape than the architecture.
    """
    if source.is_file():
        if source.suffix != ".safetensors":
            return []
        layout = read_layout(source)
        loaders = [load_one for key, load_one in _ORIGINALS.items() if key in layout]
        return [_component(load_one(source, dtype=_dtype([source]))) for load_one in loaders]
    for folder in (source, source / "vae"):
        if settings(folder).get("_class_name") in {*NATIVE, *CLASSES}:
            return [_component(load(folder, dtype=_dtype(weight_files(folder))))]
    return []


def _dtype(files: Sequence[Path]) -> torch.dtype:
    """Dtype of the first floating tensor."""
    return next(value.dtype for file in files for value in read_layout(file).values() if value.is_floating_point())


def _component(vae: Any) -> ImportedComponent:
    names: dict[type[nn.Module], str] = {
        WanVAE: "wan",
        HunyuanVideoVAE: "hunyuan_video",
        DiffusersVideoVAE: "diffusers",
    }
    state = vae.state_dict()
    return ImportedComponent(
        component="vae",
        plugin=names[type(vae)],
        config=vae.config,
        like={key: value.to("meta") for key, value in state.items()},
        tensors=lambda: iter(state.items()),
    )
