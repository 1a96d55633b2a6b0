"""Reads HunyuanVideo's published weights as the backbone of a model directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from omnihuman_core.mmdit.presets import hunyuan_video
from omnihuman_core.mmdit.state_dict_adapter import (
    HunyuanVideoDiffusersAdapter,
    HunyuanVideoLatentConcatAdapter,
    HunyuanVideoOriginalAdapter,
)

CLASS = "HunyuanVideoTransformer3DModel"
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


def import_hunyuan_video(source: Path) -> Sequence[ImportedComponent]:
    """The backbone of a diffusers folder (``transformer`` alone or the whole pipeline) or of the authors' file.

    Raises:
        ValueError: a file is missing or damaged, or a weight has another shape than ``config.json`` asks for.
    """
    if source.is_file():
        return _from_original(source)
    for folder in (source, source / "transformer"):
        found = settings(folder)
        if found.get("_class_name") == CLASS:
            config, adapter = _from_settings(found, f"{folder / 'config.json'}")
            files = weight_files(folder, "diffusion_pytorch_model.safetensors")
            return [_component(config, adapter, files)]
    return []


def _component(config: MMDiTConfig, adapter: StateDictAdapter, files: Sequence[Path]) -> ImportedComponent:
    with torch.device("meta"):
        native = MMDiT(config).state_dict()
    like, tensors = adapted(adapter, native, files)
    return ImportedComponent(component="backbone", plugin="mmdit", config=config, like=like, tensors=tensors)


def _from_settings(found: Mapping[str, Any], where: str) -> tuple[MMDiTConfig, StateDictAdapter]:
    unknown = [key for key in found if key not in _DEFAULTS and not key.startswith("_")]
    if unknown:
        raise PublicCheckpointError(f"{where}: unknown key {unknown[0]!r}; this version of {CLASS} is not supported")
    known = {**_DEFAULTS, **{key: value for key, value in found.items() if not key.startswith("_")}}
    concat = known["image_condition_type"] == "latent_concat"
    if known["image_condition_type"] not in (None, "latent_concat", "token_replace") or known["qk_norm"] != "rms_norm":
        raise PublicCheckpointError(
            f"{where}: image_condition_type {known['image_condition_type']!r} with qk_norm {known['qk_norm']!r} is not "
            "supported"
        )
    config = replace(
        hunyuan_video(),
        latent_channels=known["out_channels"],
        patch_size=(known["patch_size_t"], known["patch_size"], known["patch_size"]),
        hidden_size=known["num_attention_heads"] * known["attention_head_dim"],
        num_heads=known["num_attention_heads"],
        num_double_blocks=known["num_layers"],
        num_single_blocks=known["num_single_layers"],
        mlp_ratio=float(known["mlp_ratio"]),
        rope_dims=tuple(known["rope_axes_dim"]),
        rope_theta=float(known["rope_theta"]),
        text_dim=known["text_embed_dim"],
        text_refiner_depth=known["num_refiner_layers"],
        pooled_dim=known["pooled_projection_dim"],
        embedded_guidance=6.0 if known["guidance_embeds"] else None,
        # The picture's latents and their mask come as channels, which are pose features to us.
        pose_channels=known["in_channels"] - known["out_channels"] if concat else None,
    )
    return config, (HunyuanVideoLatentConcatAdapter if concat else HunyuanVideoDiffusersAdapter)(config)


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
    return [_component(config, HunyuanVideoOriginalAdapter(config), [file])]


def _refuse(file: Path, head: int) -> tuple[int, int, int]:
    raise PublicCheckpointError(f"{file}: heads of width {head}, HunyuanVideo's have {hunyuan_video().head_dim}")


def _width(shapes: Mapping[str, Tensor], key: str) -> int:
    if key not in shapes:
        raise PublicCheckpointError(f"weight {key} is missing from the file; download it again")
    return shapes[key].shape[-1]


def _count(shapes: Mapping[str, Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).partition(".")[0] for key in shapes if key.startswith(prefix)})
