"""Reads HunyuanVideo's published weights as the backbone of a model directory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnihuman_core.checkpoint import read_layout
from omnihuman_core.contracts.importer import ImportedComponent
from omnihuman_core.contracts.state_dict import StateDictAdapter
from omnihuman_core.importing import PublicCheckpointError, adapted, settings, weight_files
from omnihuman_core.mmdit.config import MMDiTConfig
from omnihuman_core.mmdit.model import MMDiT
from omnihuman_core.mmdit.presets import hunyuan_video, hunyuan_video_15
from omnihuman_core.mmdit.state_dict_adapter import (
    HunyuanVideo15DiffusersAdapter,
    HunyuanVideoDiffusersAdapter,
    HunyuanVideoLatentConcatAdapter,
    HunyuanVideoOriginalAdapter,
)

CLASS, CLASS_15 = "HunyuanVideoTransformer3DModel", "HunyuanVideo15Transformer3DModel"
_SCHEDULER = "scheduler_config.json"
# As the authors' own pipelines use them. HunyuanVideo's guidance is distilled into the model: its pipeline evaluates it
# once a step.
_USED: Mapping[str, Mapping[str, Any]] = {
    CLASS: {"fps": 24.0, "guidance_scale": 1.0, "guidance_end_scale": 1.0},
    CLASS_15: {"fps": 24.0, "segment_frames": 121, "guidance_scale": 6.0, "guidance_end_scale": 6.0},
}
_DEFAULTS: Mapping[str, Any] = {
    "attention_head_dim": 128,
    "guidance_embeds": True,
    "image_condition_type": None,
    "in_channels": 16,
    "mlp_ratio": 4.0,
    "num_attention_heads": 24,
    "num_layers": 20,
    "num_refiner_layers": 2,
    "num_single_layers": 40,
    "out_channels": 16,
    "patch_size": 2,
    "patch_size_t": 1,
    "pooled_projection_dim": 768,
    "qk_norm": "rms_norm",
    "rope_axes_dim": (16, 56, 56),
    "rope_theta": 256.0,
    "text_embed_dim": 4096,
}
_DEFAULTS_15: Mapping[str, Any] = {
    "attention_head_dim": 128,
    "image_embed_dim": 1152,
    "in_channels": 65,
    "mlp_ratio": 4.0,
    "num_attention_heads": 16,
    "num_layers": 54,
    "num_refiner_layers": 2,
    "out_channels": 32,
    "patch_size": 1,
    "patch_size_t": 1,
    "qk_norm": "rms_norm",
    "rope_axes_dim": (16, 56, 56),
    "rope_theta": 256.0,
    # Said for the pipeline; the weights are alike.
    "target_size": 640,
    "task_type": "i2v",
    "text_embed_2_dim": 1472,
    "text_embed_dim": 3584,
    "use_meanflow": False,
}


def import_hunyuan_video(source: Path) -> Sequence[ImportedComponent]:
    """The backbone of a diffusers folder (``transformer`` alone or the whole pipeline) or of the authors' file.

    Raises:
        ValueError: a file is missing or damaged, or a weight has another shape than ``config.json`` asks for.
    """
    if source.is_file():
        return _from_original(source)
    for folder in (source, source / "transformer"):
        found = settings(folder)
        read = _READERS.get(str(found.get("_class_name")))
        if read is not None:
            config, adapter = read(found, f"{folder / 'config.json'}")
            files = weight_files(folder, "diffusion_pytorch_model.safetensors")
            generation = {**_USED[str(found["_class_name"])], **_shift(source / "scheduler")}
            return [_component(config, adapter, files, generation)]
    return []


def _shift(folder: Path) -> dict[str, float]:
    """The shift of the noise levels that a pipeline says, where it says one."""
    found = settings(folder, _SCHEDULER)
    if "shift" not in found or found.get("use_dynamic_shifting"):
        return {}
    shift = found["shift"]
    if not isinstance(shift, int | float) or not 0 < shift < math.inf:
        raise PublicCheckpointError(f"{folder / _SCHEDULER}: shift must be a positive number, got {shift!r}")
    return {"sigma_shift": float(shift)}


def _component(
    config: MMDiTConfig, adapter: StateDictAdapter, files: Sequence[Path], generation: Mapping[str, Any]
) -> ImportedComponent:
    with torch.device("meta"):
        native = MMDiT(config).state_dict()
    like, tensors = adapted(adapter, native, files)
    return ImportedComponent(
        component="backbone", plugin="mmdit", config=config, like=like, tensors=tensors, generation=generation
    )


def _known(found: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings with their defaults; an unknown one may change the mathematics."""
    given = {key: value for key, value in found.items() if not key.startswith("_")}
    unknown = [key for key in given if key not in defaults]
    if unknown:
        name = found["_class_name"]
        raise PublicCheckpointError(f"{where}: unknown key {unknown[0]!r}; this version of {name} is not supported")
    return {**defaults, **given}


def _from_settings_15(found: Mapping[str, Any], where: str) -> tuple[MMDiTConfig, StateDictAdapter]:
    known = _known(found, _DEFAULTS_15, where)
    if known["use_meanflow"] or known["qk_norm"] != "rms_norm":
        raise PublicCheckpointError(
            f"{where}: use_meanflow {known['use_meanflow']!r} with qk_norm {known['qk_norm']!r} is not supported"
        )
    base = hunyuan_video_15()
    assert base.text_groups is not None
    groups = replace(base.text_groups, glyph_dim=known["text_embed_2_dim"], picture_dim=known["image_embed_dim"])
    config = replace(
        base,
        **_sizes(known),
        num_single_blocks=0,
        text_groups=groups,
        pose_channels=known["in_channels"] - known["out_channels"],
    )
    return config, HunyuanVideo15DiffusersAdapter(config)


def _sizes(known: Mapping[str, Any]) -> dict[str, Any]:
    """What both models say in the same words."""
    return {
        "latent_channels": known["out_channels"],
        "patch_size": (known["patch_size_t"], known["patch_size"], known["patch_size"]),
        "hidden_size": known["num_attention_heads"] * known["attention_head_dim"],
        "num_heads": known["num_attention_heads"],
        "num_double_blocks": known["num_layers"],
        "mlp_ratio": float(known["mlp_ratio"]),
        "rope_dims": tuple(known["rope_axes_dim"]),
        "rope_theta": float(known["rope_theta"]),
        "text_dim": known["text_embed_dim"],
        "text_refiner_depth": known["num_refiner_layers"],
    }


def _from_settings(found: Mapping[str, Any], where: str) -> tuple[MMDiTConfig, StateDictAdapter]:
    known = _known(found, _DEFAULTS, where)
    concat = known["image_condition_type"] == "latent_concat"
    if known["image_condition_type"] not in (None, "latent_concat", "token_replace") or known["qk_norm"] != "rms_norm":
        raise PublicCheckpointError(
            f"{where}: image_condition_type {known['image_condition_type']!r} with qk_norm {known['qk_norm']!r} is not "
            "supported"
        )
    config = replace(
        hunyuan_video(),
        **_sizes(known),
        num_single_blocks=known["num_single_layers"],
        pooled_dim=known["pooled_projection_dim"],
        embedded_guidance=6.0 if known["guidance_embeds"] else None,
        # The picture's latents and their mask come as channels, which are pose features to us.
        pose_channels=known["in_channels"] - known["out_channels"] if concat else None,
    )
    return config, (HunyuanVideoLatentConcatAdapter if concat else HunyuanVideoDiffusersAdapter)(config)


_READERS: Mapping[str, Callable[[Mapping[str, Any], str], tuple[MMDiTConfig, StateDictAdapter]]] = {
    CLASS: _from_settings,
    CLASS_15: _from_settings_15,
}


def _from_original(file: Path) -> Sequence[ImportedComponent]:
    if file.suffix != ".safetensors":
        return []
    shapes = read_layout(file)
    if not {"img_in.proj.weight", "txt_in.input_embedder.weight", "double_blocks.0.img_attn_qkv.weight"} <= set(shapes):
        return []
    width, channels, frames, rows, columns = shapes["img_in.proj.weight"].shape
    head = _width(shapes, "double_blocks.0.img_attn_q_norm.weight")
    config = replace(
        hunyuan_video(),
        latent_channels=channels,
        patch_size=(frames, rows, columns),
        hidden_size=width,
        num_heads=width // head,
        # The file does not say how its heads are split; the published models have one split.
        rope_dims=hunyuan_video().rope_dims if head == hunyuan_video().head_dim else _refuse(file, head),
        num_double_blocks=_count(shapes, "double_blocks."),
        num_single_blocks=_count(shapes, "single_blocks."),
        text_dim=shapes["txt_in.input_embedder.weight"].shape[1],
        text_refiner_depth=_count(shapes, "txt_in.individual_token_refiner.blocks."),
        pooled_dim=_width(shapes, "vector_in.in_layer.weight"),
        embedded_guidance=6.0 if "guidance_in.mlp.0.weight" in shapes else None,
    )
    return [_component(config, HunyuanVideoOriginalAdapter(config), [file], _USED[CLASS])]


def _refuse(file: Path, head: int) -> tuple[int, int, int]:
    raise PublicCheckpointError(f"{file}: heads of width {head}, HunyuanVideo's have {hunyuan_video().head_dim}")


def _width(shapes: Mapping[str, Tensor], key: str) -> int:
    if key not in shapes:
        raise PublicCheckpointError(f"weight {key} is missing from the file; download it again")
    return shapes[key].shape[-1]


def _count(shapes: Mapping[str, Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).partition(".")[0] for key in shapes if key.startswith(prefix)})
