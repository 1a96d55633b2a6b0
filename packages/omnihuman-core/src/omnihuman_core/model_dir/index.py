"""The index of a model directory: what it holds, which plugin makes each component, how the model is to be used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from omnihuman_core.config import from_table, read_toml
from omnihuman_core.plugins import check_group, group, installed, other_versions

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


def read_index(directory: str | Path) -> ModelIndex:
    """Read and check ``model.toml``; no weight is touched and no plugin imported.

    Raises:
        ValueError: no such directory or index, an unknown format, component, plugin or contract version.
    """
    path = inside(directory, INDEX)
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
                f"{other_versions(kind, entry.plugin)}"
            )
    return index


def component_entry(component: str, plugin_name: str) -> ComponentEntry:
    """What the index says of a component that an installed plugin makes, by the names of both."""
    kind = COMPONENTS[component]
    distribution = installed(kind)[plugin_name].dist
    return ComponentEntry(
        group=group(kind),
        plugin=plugin_name,
        package=distribution.name if distribution else "",
        package_version=distribution.version if distribution else "",
    )


def inside(directory: str | Path, *parts: str) -> Path:
    """Path of a file of the directory, which may be a link, as in the caches of downloads.

    Raises:
        ModelDirError: there is no such directory or file.
    """
    root = Path(directory)
    if not root.is_dir():
        raise ModelDirError(f"{root}: no such model directory")
    path = root.joinpath(*parts)
    if not path.is_file():
        raise ModelDirError(f"{path}: missing from the model directory")
    return path
