"""Loads the components of a model directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import isfunction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omnihuman_core.checkpoint import load_state
from omnihuman_core.config import from_table, read_toml
from omnihuman_core.contracts import (
    AudioCondition,
    AudioExtractor,
    Backbone,
    ConditionEncoder,
    FeatureExtractor,
    Ops,
    PoseCondition,
    PoseExtractor,
    TextCondition,
    TextFeatures,
    VideoVAE,
)
from omnihuman_core.model_dir.index import (
    COMPONENTS,
    CONFIG,
    INDEX,
    REQUIRED,
    WEIGHTS,
    ComponentEntry,
    GenerationSettings,
    ModelDirError,
    ModelIndex,
    inside,
    read_index,
)
from omnihuman_core.plugins import installed, plugin, resolve_ops

# What the contract of each component asks of it.
_CONTRACTS: Mapping[str, type] = {
    "vae": VideoVAE,
    "backbone": Backbone,
    "text_extractor": FeatureExtractor,
    "text_encoder": ConditionEncoder,
    "audio_extractor": AudioExtractor,
    "audio_encoder": ConditionEncoder,
    "pose_extractor": PoseExtractor,
    "pose_encoder": ConditionEncoder,
}


@dataclass(frozen=True, kw_only=True)
class ModelComponents:
    """A loaded model; optional components are None where the directory has none."""

    index: ModelIndex
    vae: VideoVAE
    backbone: Backbone
    text_extractor: FeatureExtractor[Sequence[str], TextFeatures] | None = None
    text_encoder: ConditionEncoder[TextFeatures, TextCondition] | None = None
    audio_extractor: AudioExtractor | None = None
    audio_encoder: ConditionEncoder[Tensor, AudioCondition] | None = None
    pose_extractor: PoseExtractor | None = None
    pose_encoder: ConditionEncoder[Tensor, PoseCondition] | None = None

    @property
    def generation(self) -> GenerationSettings:
        """How the model was trained to be used."""
        return self.index.generation


def load_model(
    directory: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    ops: str | Ops = "eager",
) -> ModelComponents:
    """Load every component that the index names, in ``eval`` mode; torch's global generator is left as it was.

    Args:
        directory: A model directory.
        device: Where modules go.
        dtype: Dtype of their floating tensors.
        ops: Ops bundle of the backbone, or its name.

    Raises:
        ValueError: the directory is incomplete or something in it does not fit; one line that names file and field.
    """
    index = read_index(directory)
    for name in REQUIRED:
        if name not in index.components:
            raise ModelDirError(f"{Path(directory) / INDEX}: components.{name} is missing; a model needs it")
    for name in index.components:
        inside(directory, name, CONFIG)
    loaded = {
        name: _load(directory, name, entry, device=device, dtype=dtype, ops=ops)
        for name, entry in index.components.items()
    }
    return ModelComponents(index=index, **loaded)


def load_component(
    directory: str | Path,
    name: str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    ops: str | Ops = "eager",
) -> Any:
    """Load one component alone, as :func:`load_model` does; the others may be missing.

    Raises:
        ValueError: as :func:`load_model`.
    """
    index = read_index(directory)
    if name not in index.components:
        raise ModelDirError(f"{Path(directory) / INDEX}: components.{name} is missing")
    return _load(directory, name, index.components[name], device=device, dtype=dtype, ops=ops)


def _load(
    directory: str | Path,
    name: str,
    entry: ComponentEntry,
    *,
    device: str | torch.device,
    dtype: torch.dtype,
    ops: str | Ops,
) -> Any:
    path = inside(directory, name, CONFIG)
    made_by = plugin(COMPONENTS[name], entry.plugin)
    contract = _CONTRACTS[name]
    methods = [
        method for method in dir(contract) if not method.startswith("_") and isfunction(getattr(contract, method))
    ]
    missing = [f"{method}()" for method in methods if not callable(getattr(made_by, method, None))]
    if not hasattr(made_by, "config_class"):
        missing.append("config_class")
    if missing:
        raise ModelDirError(
            f"{path}: plugin {entry.plugin!r} makes {getattr(made_by, '__name__', made_by)}, which has no {missing[0]} "
            f"as the contract {contract.__name__} asks; use another plugin"
        )
    table = read_toml(path)
    try:
        config = from_table(made_by.config_class, _resolved(table, path.parent))
    except ValueError as error:
        raise ModelDirError(f"{path}: {error}{_other_release(entry, COMPONENTS[name])}") from None
    extra = {"ops": resolve_ops(ops) if isinstance(ops, str) else ops} if name == "backbone" else {}
    weights = Path(directory) / name / WEIGHTS
    # Constructors draw weights, which those of the file replace: the program that loads a model keeps its own numbers.
    with torch.random.fork_rng(devices=[]):
        # An extractor without a file of its own brings its weights itself, if it has any.
        if COMPONENTS[name] == "feature_extractor" and not weights.exists():
            made = made_by(config, **extra)
        else:
            made = _load_weights(made_by, config, extra, weights, dtype)
    if isinstance(made, nn.Module):
        return made.to(device=device).eval()
    # Extractors that hold a model of another library say where it runs.
    return made.to(device) if hasattr(made, "to") else made


# Below this many bytes a component is built in memory before its weights are read: faster than on the meta device,
# whose initialisers import a compiler. Larger ones never exist twice.
_SMALL = 256 * 2**20


def _load_weights(made_by: Any, config: Any, extra: Mapping[str, Any], weights: Path, dtype: torch.dtype) -> Any:
    small = not weights.exists() or weights.stat().st_size < _SMALL
    with torch.device("cpu" if small else "meta"):
        made = made_by(config, **extra)
    if not isinstance(made, nn.Module) or not (made.state_dict() or weights.exists()):
        return made_by(config, **extra)
    load_state(made, weights, dtype=dtype)
    if _on_meta(made):
        # Some plugins compute tables at construction which are in no state dict: build those for real.
        made = made_by(config, **extra)
        load_state(made, weights, dtype=dtype)
    return made


def _other_release(entry: ComponentEntry, kind: str) -> str:
    """End of a message on what does not fit: the releases, where another one wrote the directory."""
    now = installed(kind)[entry.plugin].dist
    if now is None or (now.name, now.version) == (entry.package, entry.package_version):
        return ""
    return f" (written by {entry.package} {entry.package_version}, installed is {now.name} {now.version})"


def _resolved(value: Any, folder: Path) -> Any:
    """The values of a config with each ``./`` path made absolute."""
    if isinstance(value, Mapping):
        return {key: _resolved(item, folder) for key, item in value.items()}
    if not isinstance(value, str) or not value.startswith("./"):
        return value
    path = (folder / value).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"path {value!r} leads out of the component's folder")
    return str(path)


def _on_meta(module: nn.Module) -> bool:
    tensors = [value for part in module.modules() for value in vars(part).values() if isinstance(value, torch.Tensor)]
    tensors += [*module.parameters(), *module.buffers()]
    return any(tensor.is_meta for tensor in tensors)
