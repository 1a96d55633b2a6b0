"""A model directory: one folder per component and an index that names plugin and version.

::

    DIR/model.toml                      index
    DIR/<component>/config.toml         strict config of the component
    DIR/<component>/model.safetensors   absent for components without weights

A text in ``config.toml`` that begins with ``./`` is a path inside the component's folder, so that a directory which
holds a public model can be moved.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from omnihuman_core.checkpoint import load_state, save_safetensors
from omnihuman_core.config import from_table, read_toml, to_toml
from omnihuman_core.contracts.backbone import Backbone
from omnihuman_core.contracts.encoder import ConditionEncoder, FeatureExtractor
from omnihuman_core.contracts.ops import Ops
from omnihuman_core.contracts.vae import VideoVAE
from omnihuman_core.plugins import check_group, group, installed, plugin, resolve_ops

FORMAT = 1
INDEX, CONFIG, WEIGHTS = "model.toml", "config.toml", "model.safetensors"

# Kind of plugin behind each component.
COMPONENTS: Mapping[str, str] = {
    "vae": "video_vae",
    "backbone": "backbone",
    "text_extractor": "feature_extractor",
    "text_encoder": "condition_encoder",
    "audio_extractor": "feature_extractor",
    "audio_encoder": "condition_encoder",
    "pose_extractor": "feature_extractor",
    "pose_encoder": "condition_encoder",
}
REQUIRED = ("vae", "backbone")


class ModelDirError(ValueError):
    """A model directory is incomplete, or its index says something that cannot be."""


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How the model was trained to be used, and what a request that leaves a setting open gets.

    Attributes:
        fps: Frames per second of the video.
        segment_frames: Pixel frames that are denoised together, motion frames included.
        motion_frames: Pixel frames carried over from the segment before (paper section 3.4: 5).
        area: Target ``H * W`` in pixels.
        max_aspect: Largest ratio of the long side to the short one.
        size_multiple: Sides are multiples of this many pixels.
        num_steps: Steps of the sampler.
        guidance_scale: Classifier-free guidance scale (paper section 3.4: 6.5).
        guidance_schedule: Name of the schedule of the scale over the noise levels.
        guidance_end_scale: Scale at the last step of a schedule that is not constant.
        sigma_shift: Shift of the schedule of noise levels; 1 is none.
        sampler: Name of the sampler.
        default_prompt: Prompt of a request that has none and no captioner; empty where the model learnt "no text".
    """

    segment_frames: int
    area: int
    max_aspect: float
    size_multiple: int
    num_steps: int
    guidance_scale: float
    guidance_schedule: str
    guidance_end_scale: float
    sigma_shift: float
    sampler: str
    fps: float = 25.0
    motion_frames: int = 5
    default_prompt: str = ""

    def __post_init__(self) -> None:
        for name in ("fps", "segment_frames", "area", "size_multiple", "num_steps", "sigma_shift"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"generation.{name} must be positive and finite, got {getattr(self, name)}")
        if not 1 <= self.max_aspect < math.inf:
            raise ValueError(f"generation.max_aspect must be at least 1 and finite, got {self.max_aspect}")
        for name in ("guidance_scale", "guidance_end_scale"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"generation.{name} must be at least 0 and finite, got {getattr(self, name)}")
        if not 0 <= self.motion_frames < self.segment_frames:
            raise ValueError(
                f"generation.motion_frames must be in [0, segment_frames = {self.segment_frames}), "
                f"got {self.motion_frames}"
            )


@dataclass(frozen=True, kw_only=True)
class ComponentEntry:
    """What the index says of one component.

    Attributes:
        group: Entry-point group, with the version of the contract.
        plugin: Name of the plugin in that group.
        package: Distribution that provided it when the model was saved.
        package_version: Its version then.
    """

    group: str
    plugin: str
    package: str
    package_version: str


@dataclass(frozen=True, kw_only=True)
class ModelIndex:
    """Content of ``model.toml``."""

    format: int
    name: str
    version: str
    generation: GenerationSettings
    components: dict[str, ComponentEntry]


@dataclass(frozen=True, kw_only=True)
class ModelComponents:
    """A loaded model; optional components are None where the directory has none."""

    index: ModelIndex
    vae: VideoVAE
    backbone: Backbone
    text_extractor: FeatureExtractor[Any, Any] | None = None
    text_encoder: ConditionEncoder[Any, Any] | None = None
    audio_extractor: FeatureExtractor[Any, Any] | None = None
    audio_encoder: ConditionEncoder[Any, Any] | None = None
    pose_extractor: FeatureExtractor[Any, Any] | None = None
    pose_encoder: ConditionEncoder[Any, Any] | None = None

    @property
    def generation(self) -> GenerationSettings:
        """How the model was trained to be used."""
        return self.index.generation


def read_index(directory: str | Path) -> ModelIndex:
    """Read and check ``model.toml``; no weight is touched and no plugin imported.

    Raises:
        ValueError: no such directory or index, an unknown format, component, plugin or contract version.
    """
    path = _inside(directory, INDEX)
    table = read_toml(path)
    if table.get("format") != FORMAT:
        raise ModelDirError(f"{path}: format must be {FORMAT}, got {table.get('format')!r}; update omnihuman-core")
    try:
        index = from_table(ModelIndex, table)
    except ValueError as error:
        raise ModelDirError(f"{path}: {error}") from None
    for name, entry in index.components.items():
        if name not in COMPONENTS:
            raise ModelDirError(f"{path}: unknown component {name!r}; known are {', '.join(COMPONENTS)}")
        kind = COMPONENTS[name]
        try:
            check_group(entry.group, kind)
        except ValueError as error:
            raise ModelDirError(f"{path}: components.{name}.{error}") from None
        found = installed(kind)
        if entry.plugin not in found:
            raise ModelDirError(
                f"{path}: components.{name}.plugin {entry.plugin!r} is not installed (it came with {entry.package} "
                f"{entry.package_version}); installed are {', '.join(sorted(found)) or 'none'}"
            )
    return index


def load_model(
    directory: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    ops: str | Ops = "eager",
) -> ModelComponents:
    """Load every component that the index names, in ``eval`` mode.

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
        _inside(directory, name, CONFIG)
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


def save_model(
    directory: str | Path,
    *,
    name: str,
    version: str,
    generation: GenerationSettings,
    components: Mapping[str, tuple[str, Any]],
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write a model directory, whole or not at all.

    Args:
        directory: Made, or replaced if it is a model directory already.
        name: Name of the model.
        version: Version of the model.
        generation: How to use it.
        components: Plugin name and module by component name.
        dtype: Dtype of the floating tensors in the files.

    Raises:
        ValueError: an unknown component, a module that is not what its plugin makes, or a directory that holds
            something else.
    """
    directory = Path(directory)
    if (
        directory.exists()
        and not (directory / INDEX).is_file()
        and (not directory.is_dir() or any(directory.iterdir()))
    ):
        raise ModelDirError(f"{directory}: exists and is no model directory; choose another one or empty it")
    entries = {component: _entry(component, *named) for component, named in components.items()}
    index = ModelIndex(format=FORMAT, name=name, version=version, generation=generation, components=entries)
    with replacing(directory) as new:
        for component, (_, module) in components.items():
            _save(new / component, module, dtype)
        (new / INDEX).write_text(to_toml(index), encoding="utf-8")


@contextmanager
def replacing(directory: Path, *, keep: bool = False) -> Iterator[Path]:
    """A folder to fill, which takes the place of a model directory at the end of the ``with`` block.

    After an error or an interrupt, wherever it comes, the directory is as it was.

    Args:
        directory: Made, with its parents, if there is none.
        keep: Keep what is in the directory under names that the new folder does not have.

    Raises:
        ModelDirError: the directory cannot be written.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".omnihuman-", suffix=".part", dir=directory.parent))
    except OSError as error:
        raise ModelDirError(f"{directory}: cannot be written ({error.strerror})") from error
    new, old = staging / "new", staging / "old"
    done = False
    try:
        new.mkdir()
        old.mkdir()
        yield new
        moves = [(new, directory)]
        if keep and directory.exists():
            # The index comes last: until then it names what was there.
            names = sorted((path.name for path in new.iterdir()), key=lambda name: name == INDEX)
            moves = [(new / name, directory / name) for name in names]
        _move_all(moves, old)
        done = True
    except OSError as error:
        raise ModelDirError(f"{directory}: cannot be written ({error.strerror})") from error
    finally:
        # What could not even be moved back is the only copy of the old model.
        if done or not any(old.glob("*")):
            shutil.rmtree(staging, ignore_errors=True)


def _move_all(moves: Sequence[tuple[Path, Path]], old: Path) -> None:
    """Move each first path to the second, all or none; what was there goes to ``old``."""
    try:
        for source, target in moves:
            if os.path.lexists(target):
                os.replace(target, old / target.name)
            os.replace(source, target)
    except BaseException:
        # The disk says what was moved: an interrupt may come between a move and any note of it.
        for source, target in moves:
            if not os.path.lexists(source):
                os.replace(target, source)
            if os.path.lexists(old / target.name):
                os.replace(old / target.name, target)
        raise


def _entry(component: str, plugin_name: str, module: Any) -> ComponentEntry:
    if component not in COMPONENTS:
        raise ModelDirError(f"unknown component {component!r}; known are {', '.join(COMPONENTS)}")
    kind = COMPONENTS[component]
    made_by = plugin(kind, plugin_name)
    if not isinstance(module, made_by):
        raise ModelDirError(
            f"components.{component}: plugin {plugin_name!r} makes {made_by.__name__}, got {type(module).__name__}"
        )
    distribution = installed(kind)[plugin_name].dist
    return ComponentEntry(
        group=group(kind),
        plugin=plugin_name,
        package=distribution.name if distribution else "",
        package_version=distribution.version if distribution else "",
    )


def _save(folder: Path, module: Any, dtype: torch.dtype) -> None:
    folder.mkdir()
    (folder / CONFIG).write_text(to_toml(module.config), encoding="utf-8")
    state = module.state_dict() if isinstance(module, nn.Module) else {}
    if state:
        cast_state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
        save_safetensors(cast_state, folder / WEIGHTS, {"format": "pt"})


def _load(
    directory: str | Path,
    name: str,
    entry: ComponentEntry,
    *,
    device: str | torch.device,
    dtype: torch.dtype,
    ops: str | Ops,
) -> Any:
    path = _inside(directory, name, CONFIG)
    made_by = plugin(COMPONENTS[name], entry.plugin)
    table = read_toml(path)
    try:
        config = from_table(made_by.config_class, _resolved(table, path.parent))
    except ValueError as error:
        raise ModelDirError(f"{path}: {error}") from None
    extra = {"ops": resolve_ops(ops) if isinstance(ops, str) else ops} if name == "backbone" else {}
    weights = Path(directory) / name / WEIGHTS
    if weights.exists():
        _inside(directory, name, WEIGHTS)
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


def _inside(directory: str | Path, *parts: str) -> Path:
    root = Path(directory)
    if not root.is_dir():
        raise ModelDirError(f"{root}: no such model directory")
    path = root.joinpath(*parts)
    if not path.resolve().is_relative_to(root.resolve()):
        raise ModelDirError(f"{path}: leads out of the model directory")
    if not path.is_file():
        raise ModelDirError(f"{path}: missing from the model directory")
    return path
