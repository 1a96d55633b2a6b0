"""From a pretrained text-to-video backbone to one that also takes audio, pose and a reference picture (paper 3.1).

The new paths end in zeros, so that without audio, pose and reference, and at first with them too, the model gives what
the base gives; a guidance-distilled base, what it gives at ``embedded_guidance``. Weights stream from file to file, one
block in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omnihuman_core.contracts.importer import ImportedComponent
from omnihuman_core.importing import read_model_dir, read_public, write_components
from omnihuman_core.importing.components import GENERATION
from omnihuman_core.mmdit import MMDiT, MMDiTConfig
from omnihuman_core.mmdit.init import init_weights
from omnihuman_core.mmdit.layers import FrameCrossAttention
from omnihuman_core.model_dir import INDEX, ModelIndex, read_index
from omnihuman_core.ops import eager_ops
from omnihuman_core.plugins import plugin


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """The paths that a base gets.

    Attributes:
        name: Name of the new model.
        audio_encoder: Preset of the audio encoder; it has to fit the audio extractor.
        audio_dim: Width of its tokens.
        audio_blocks: Blocks with audio cross-attention, counted over double then single blocks; None takes all.
        pose_extractor: Preset of the skeleton drawing.
        pose_encoder: Preset of the pose guider.
        pose_channels: Channels of its features.
        embedded_guidance: Guidance scale given to the embedding of a guidance-distilled base; other bases have none. 1
            asks for velocities without guidance, which are what training teaches.
        segment_embedding: Add learned vectors that tell reference, motion and video tokens apart.
        temporal_stride: Pixel frames behind each latent frame of the VAE but the first.
        spatial_stride: Pixels behind one latent position along each side.
        seed: Seed of the new weights.
    """

    name: str = "omni"
    audio_encoder: str = "wav2vec2_base"
    audio_dim: int = 768
    audio_blocks: tuple[int, ...] | None = None
    pose_extractor: str = "full"
    pose_encoder: str = "tiny"
    pose_channels: int = 16
    embedded_guidance: float = 1.0
    segment_embedding: bool = True
    temporal_stride: int = 4
    spatial_stride: int = 8
    seed: int = 0


def initialise(base: str | Path, out: str | Path, config: InitConfig) -> ModelIndex:
    """Write a model directory with the extended backbone and fresh audio and pose encoders.

    Args:
        base: A published text-to-video model, or a model directory of ours; of the latter all other components come
            along.
        out: New model directory; components of another one are kept if it has no backbone.
        config: The new paths.

    Raises:
        ValueError: the base is no MMDiT, has these paths already, or is damaged, or ``out`` holds a backbone.
    """
    base, out = Path(base), Path(out)
    if (out / INDEX).is_file() and "backbone" in read_index(out).components:
        raise ValueError(f"--out {out}: has a backbone already; choose another directory")
    ours = (base / INDEX).is_file()
    parts = read_model_dir(base) if ours else read_public(base, only=("backbone",))
    backbones = [part for part in parts if part.component == "backbone"]
    if len(backbones) != 1:
        raise ValueError(f"--base {base}: must hold one backbone, it holds {len(backbones)}")
    backbone = backbones[0]
    if not any(part.component == "pose_encoder" for part in parts):
        backbone = _without_picture_channels(backbone)
    new = [_extended(backbone, config), *_encoders(config)]
    names = {part.component for part in new}
    kept = [part for part in parts if part.component not in names]
    generation = read_index(base).generation if ours else GENERATION
    return write_components(out, [*new, *kept], name=config.name, generation=generation)


def _without_picture_channels(base: ImportedComponent) -> ImportedComponent:
    """HunyuanVideo-1.5 without the channels of its picture, which hold zeros where there is none.

    Only that model: its text-to-video weights have these channels too. Another model that has them was trained with a
    picture in them.
    """
    old = base.config
    if not isinstance(old, MMDiTConfig) or old.text_groups is None or old.pose_channels is None:
        return base
    dropped = "patch_embed.pose_proj.weight"
    return replace(
        base,
        config=replace(old, pose_channels=None),
        like={key: value for key, value in base.like.items() if key != dropped},
        tensors=lambda: ((key, value) for key, value in base.tensors() if key != dropped),
    )


def _extended(base: ImportedComponent, config: InitConfig) -> ImportedComponent:
    old = base.config
    if not isinstance(old, MMDiTConfig):
        raise ValueError(f"the base is made by the plugin {base.plugin!r}; only an mmdit can be extended")
    for name, value in (("audio", old.audio_dim), ("pose", old.pose_channels)):
        if value is not None:
            raise ValueError(f"the base takes {name} channels already ({value}); start from text-to-video weights")
    blocks = tuple(range(old.num_blocks)) if config.audio_blocks is None else config.audio_blocks
    new = replace(
        old,
        audio_dim=config.audio_dim,
        audio_blocks=blocks,
        pose_channels=config.pose_channels,
        reference=True,
        motion=True,
        embedded_guidance=None if old.embedded_guidance is None else config.embedded_guidance,
        segment_embedding=old.segment_embedding or config.segment_embedding,
    )
    with torch.device("meta"):
        wanted = {key: value.shape for key, value in MMDiT(old).state_dict().items()}
        model = MMDiT(new)
    wrong = sorted(set(wanted.items()) ^ {(key, value.shape) for key, value in base.like.items()})
    if wrong:
        raise ValueError(f"the weights of the base do not fit its config.toml; the first that differs is {wrong[0][0]}")
    # One dtype for old and new: that of the patch embedding, which every base has.
    dtype = base.like["patch_embed.proj.weight"].dtype
    fresh = {key: value.to(dtype) for key, value in model.state_dict().items() if key not in base.like}

    def tensors() -> Iterator[tuple[str, Tensor]]:
        yield from base.tensors()
        yield from _fresh(model, fresh, config.seed)

    return replace(base, config=new, like={**base.like, **fresh}, tensors=tensors)


def _fresh(model: MMDiT, like: dict[str, Tensor], seed: int) -> Iterator[tuple[str, Tensor]]:
    """Weights that the base lacks: audio cross-attention block by block, zeros for all others."""
    left = dict(like)
    audio_dim = model.config.audio_dim
    assert audio_dim is not None
    paths = [name for name, module in model.named_modules() if isinstance(module, FrameCrossAttention)]
    for number, path in enumerate(paths):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + number)
            module = FrameCrossAttention(model.config, audio_dim, eager_ops())
            init_weights(module)
        for key, value in module.state_dict().items():
            yield f"{path}.{key}", value.to(left.pop(f"{path}.{key}").dtype)
    for key, value in left.items():
        yield key, torch.zeros(value.shape, dtype=value.dtype)


def _encoders(config: InitConfig) -> Iterator[ImportedComponent]:
    audio = _preset("condition_encoder", "audio", config.audio_encoder)
    pose = _preset("condition_encoder", "pose_guider", config.pose_encoder)
    skeleton = _preset("feature_extractor", "skeleton", config.pose_extractor)
    audio = replace(audio, token_dim=config.audio_dim, temporal_stride=config.temporal_stride)
    pose = replace(
        pose,
        out_channels=config.pose_channels,
        temporal_stride=config.temporal_stride,
        spatial_stride=config.spatial_stride,
    )
    yield _made("audio_encoder", "audio", audio, config.seed)
    yield _made("pose_encoder", "pose_guider", pose, config.seed)
    yield ImportedComponent(component="pose_extractor", plugin="skeleton", config=skeleton)


def _preset(kind: str, name: str, preset: str) -> Any:
    presets = plugin(kind, name).presets
    if preset not in presets:
        raise ValueError(f"preset {preset!r} of {name!r} does not exist; it has {', '.join(sorted(presets))}")
    return presets[preset]()


def _made(component: str, name: str, config: Any, seed: int) -> ImportedComponent:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: nn.Module = plugin("condition_encoder", name)(config)
    state = module.state_dict()
    like = {key: value.to("meta") for key, value in state.items()}
    return ImportedComponent(
        component=component, plugin=name, config=config, like=like, tensors=lambda: iter(state.items())
    )
