"""The frozen halves that a data set was encoded with: they have to fit the model that trains on it, and go with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnihuman_core.config import from_table
from omnihuman_core.contracts import TextFeatures
from omnihuman_core.contracts.importer import ImportedComponent
from omnihuman_core.importing import read_model_dir
from omnihuman_core.model_dir import load_component, read_index
from omnihuman_core.plugins import plugin
from omnihuman_train.data.encoder import VAE_DIGEST, fingerprint
from omnihuman_train.data.shards import STATES
from omnihuman_train.data.shards import read_index as read_data_index
from omnihuman_train.stage_config import StageConfig

ENCODED = ("audio", "text")


def data_recipe(config: StageConfig, field: str = "data") -> Mapping[str, Any]:
    """How the data was made, as its index says; the functions below take it.

    Args:
        config: The stage.
        field: Field of the stage that messages name.

    Raises:
        ValueError: there is no data, or it is not encoded.
    """
    if not Path(config.data).is_dir():
        raise ValueError(
            f"{field}: {config.data} does not exist; make it with `omnihuman-train data pack` and `data cache`, or "
            f"name another folder with --set {field}=DIR"
        )
    index = read_data_index(Path(config.data))
    if index.kind != STATES:
        raise ValueError(f"{field}: {config.data} holds {index.kind}; run `omnihuman-train data cache` first")
    return index.recipe


def extractors(config: StageConfig, made: Mapping[str, Any]) -> list[ImportedComponent]:
    """The audio and text extractors that the data was encoded with, to be exported with the model.

    Raises:
        ValueError: the data does not tell, ``start`` has others, or the files of one are not where they were.
    """
    notes: Mapping[str, Any] = made.get("extractors", {})
    held = {} if config.start is None else {part.component: part for part in read_model_dir(config.start)}
    return [
        _extractor(config, name, notes.get(name), made.get(name), held.get(f"{name}_extractor")) for name in ENCODED
    ]


def vae_directory(config: StageConfig, made: Mapping[str, Any]) -> str:
    """The model directory whose VAE made the latents: ``vae``, that of ``start``, or what the data was encoded with.

    Raises:
        ValueError: there is none.
    """
    directory: str | None = config.vae or config.start or made.get("vae")
    if directory is None or not Path(directory).is_dir():
        raise ValueError(
            f"vae: {directory or 'none'} is no model directory; set vae to the one that {config.data} was encoded with "
            f"(--vae {made.get('vae')})"
        )
    if "vae" not in read_index(directory).components:
        raise ValueError(f"vae: {directory} holds no VAE; set vae to the model directory that made the latents")
    return directory


def check_vae(config: StageConfig, made: Mapping[str, Any], directory: str) -> None:
    """Check that the VAE is the one that made the latents; both are compared in bf16, as they are exported.

    Raises:
        ValueError: it is another one.
    """
    if VAE_DIGEST not in made:
        return
    if fingerprint(load_component(directory, "vae"), torch.bfloat16) != made[VAE_DIGEST]:
        raise ValueError(
            f"vae: the VAE of {directory} is not the one that made the latents of {config.data} (--vae {made['vae']}); "
            f"set vae to that one, or encode the clips anew"
        )


@torch.no_grad()
def check_encoders(config: StageConfig, made: Mapping[str, Any], features: Mapping[str, Tensor]) -> None:
    """Check that the encoders take what the extractors of the data gave.

    Args:
        config: The stage.
        made: How the data was made.
        features: One sample: ``states``, ``values``, ``mask`` and, where there is one, ``pooled``.

    Raises:
        ValueError: one does not; names field and fix.
    """
    text = TextFeatures(values=features["values"], mask=features["mask"], pooled=features.get("pooled"))
    raw: dict[str, Any] = {"audio": features["states"].float(), "text": text}
    for name in ENCODED:
        kind, chosen = config.model.component(f"{name}_encoder")
        try:
            chosen.build(kind).encode(raw[name])
        except (ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"data: {config.data} was encoded with --{name} {made.get(name, 'unknown')}, which does not fit "
                f"model.{name}_encoder ({chosen.plugin}:{chosen.preset}): {reason}; encode the clips with another "
                f"--{name} (`omnihuman-train data cache`), or change model.{name}_encoder"
            ) from error


def _extractor(
    config: StageConfig, name: str, note: Any, choice: str | None, held: ImportedComponent | None
) -> ImportedComponent:
    component = f"{name}_extractor"
    if note is None:
        if held is None:
            raise ValueError(
                f"data: the index of {config.data} does not say what --{name} it was encoded with; encode the clips "
                f"again (`omnihuman-train data cache`) into another folder"
            )
        return held
    made_by = plugin("feature_extractor", note["plugin"])
    part = ImportedComponent(
        component=component, plugin=note["plugin"], config=from_table(made_by.config_class, note["config"])
    )
    if held is not None:
        if (held.plugin, held.config) != (part.plugin, part.config):
            raise ValueError(
                f"data: {config.data} was encoded with --{name} {choice} ({part.plugin}), but the {component} of "
                f"start, {config.start}, is another one ({held.plugin}); encode the clips with --{name} {config.start}"
            )
        return held
    if not _has_files(note["config"]):
        return part
    found = {p.component: p for p in read_model_dir(choice)} if choice and Path(choice).is_dir() else {}
    source = found.get(component)
    if source is None or (source.plugin, source.config) != (part.plugin, part.config):
        raise ValueError(
            f"data: {config.data} was encoded with the {part.plugin} of {choice}, whose files go with the model, but "
            f"it is not there any more; put it back"
        )
    return source


def _has_files(value: Any) -> bool:
    """Whether a configuration names files inside the component's folder."""
    if isinstance(value, Mapping):
        return any(map(_has_files, value.values()))
    return isinstance(value, str) and value.startswith("./")
