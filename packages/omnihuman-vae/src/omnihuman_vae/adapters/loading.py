"""Loading a published VAE from a local folder or file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from omnihuman_core.checkpoint import KeyReport, Mismatch, load_safetensors, load_state
from omnihuman_core.contracts.state_dict import StateDictAdapter
from omnihuman_vae.adapters.diffusers_video import CLASSES, DiffusersVAEConfig, DiffusersVideoVAE
from omnihuman_vae.adapters.hunyuan_config import HunyuanVideoVAEConfig, hunyuan_video
from omnihuman_vae.adapters.hunyuan_video import HunyuanVideoVAE
from omnihuman_vae.adapters.public_files import PublicFilesError, read_config, take, weight_files
from omnihuman_vae.adapters.state_dict import HunyuanVideoVAEOriginalAdapter, WanVAEOriginalAdapter
from omnihuman_vae.adapters.wan import WanVAE
from omnihuman_vae.adapters.wan_config import WanVAEConfig, wan_2_1

VAEModule = TypeVar("VAEModule", bound=nn.Module)

NATIVE = ("AutoencoderKLWan", "AutoencoderKLHunyuanVideo")


def load(directory: str | Path, *, dtype: torch.dtype = torch.float32) -> WanVAE | HunyuanVideoVAE | DiffusersVideoVAE:
    """Load the VAE of a published folder, with its native class where there is one.

    Args:
        directory: Holds ``config.json`` and safetensors, in one file or in shards with an index.
        dtype: Dtype of the weights.

    Returns:
        The VAE in ``eval`` mode on the CPU.

    Raises:
        ValueError: the folder is incomplete, holds another model, or a file is damaged; one line.
    """
    config = read_config(directory, classes={*NATIVE, *CLASSES})
    if config["_class_name"] == "AutoencoderKLHunyuanVideo":
        return load_hunyuan_video(directory, dtype=dtype)
    if config["_class_name"] == "AutoencoderKLWan" and not config.get("is_residual"):
        return load_wan(directory, dtype=dtype)
    return load_diffusers(directory, dtype=dtype)


def load_wan(path: str | Path, *, dtype: torch.dtype = torch.float32) -> WanVAE:
    """Load Wan 2.1's VAE from its folder, or from the authors' single file as safetensors.

    Raises:
        ValueError: as :func:`load`.
    """
    if Path(path).is_file():
        original = WanVAEOriginalAdapter(wan_2_1())
        return _load_original(WanVAE, original.config, original, Path(path), dtype)
    config = read_config(path, classes={"AutoencoderKLWan"})
    default = wan_2_1()
    values = take(
        config,
        {
            "z_dim": default.latent_channels,
            "base_dim": default.base_channels,
            "dim_mult": default.channel_multipliers,
            "num_res_blocks": default.blocks,
            "temperal_downsample": default.temporal_downsample,
            "latents_mean": default.latents_mean,
            "latents_std": default.latents_std,
        },
        fixed={
            "attn_scales": (),
            "decoder_base_dim": None,
            "dropout": 0.0,
            "in_channels": 3,
            "is_residual": False,
            "out_channels": 3,
            "patch_size": None,
            "scale_factor_spatial": 8,
            "scale_factor_temporal": 4,
        },
        where=f"{path}/config.json",
    )
    own = WanVAEConfig(
        latent_channels=values["z_dim"],
        base_channels=values["base_dim"],
        channel_multipliers=tuple(values["dim_mult"]),
        blocks=values["num_res_blocks"],
        temporal_downsample=tuple(values["temperal_downsample"]),
        latents_mean=tuple(values["latents_mean"]),
        latents_std=tuple(values["latents_std"]),
    )
    return _load_folder(WanVAE, own, path, dtype)


def load_hunyuan_video(path: str | Path, *, dtype: torch.dtype = torch.float32) -> HunyuanVideoVAE:
    """Load HunyuanVideo's VAE from its folder, or from the authors' single file as safetensors.

    Raises:
        ValueError: as :func:`load`.
    """
    if Path(path).is_file():
        original = HunyuanVideoVAEOriginalAdapter(hunyuan_video())
        return _load_original(HunyuanVideoVAE, original.config, original, Path(path), dtype)
    config = read_config(path, classes={"AutoencoderKLHunyuanVideo"})
    default = hunyuan_video()
    values = take(
        config,
        {
            "latent_channels": default.latent_channels,
            "block_out_channels": default.channels,
            "layers_per_block": default.blocks,
            "norm_num_groups": default.norm_groups,
            "spatial_compression_ratio": default.spatial_stride,
            "mid_block_add_attention": default.mid_attention,
            "scaling_factor": default.scaling_factor,
            "down_block_types": (),
            "up_block_types": (),
        },
        fixed={"act_fn": "silu", "in_channels": 3, "out_channels": 3, "temporal_compression_ratio": 4},
        where=f"{path}/config.json",
    )
    own = HunyuanVideoVAEConfig(
        latent_channels=values["latent_channels"],
        channels=tuple(values["block_out_channels"]),
        blocks=values["layers_per_block"],
        norm_groups=values["norm_num_groups"],
        spatial_stride=values["spatial_compression_ratio"],
        mid_attention=values["mid_block_add_attention"],
        scaling_factor=values["scaling_factor"],
    )
    return _load_folder(HunyuanVideoVAE, own, path, dtype)


def load_diffusers(directory: str | Path, *, dtype: torch.dtype = torch.float32) -> DiffusersVideoVAE:
    """Load any VAE of :data:`CLASSES` from its folder, through diffusers.

    Raises:
        ValueError: as :func:`load`, or diffusers is not installed.
    """
    config = read_config(directory, classes=CLASSES)
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    own = DiffusersVAEConfig(class_name=config["_class_name"], arguments=json.dumps(arguments, sort_keys=True))
    vae = DiffusersVideoVAE(own)
    files = weight_files(directory)
    # Some diffusers classes compute tables when they are built, so that meta is no place for them.
    load_state(vae.vae, files, dtype=dtype)
    return vae.eval()


def _load_folder(made_by: type[VAEModule], config: Any, path: str | Path, dtype: torch.dtype) -> VAEModule:
    files = weight_files(path)
    with torch.device("meta"):
        vae = made_by(config)
    load_state(vae, files, dtype=dtype)
    return vae.eval()


def _load_original(
    made_by: type[VAEModule], config: Any, adapter: StateDictAdapter, path: Path, dtype: torch.dtype
) -> VAEModule:
    try:
        state = adapter.to_native(load_safetensors(path))
    except ValueError as error:
        raise PublicFilesError(f"{path}: {error}") from None
    with torch.device("meta"):
        vae = made_by(config)
    wanted = {key: tuple(value.shape) for key, value in vae.state_dict().items()}
    report = KeyReport(
        missing=tuple(key for key in wanted if key not in state),
        unexpected=(),
        mismatched=tuple(
            Mismatch(key=key, expected=wanted[key], found=tuple(value.shape))
            for key, value in state.items()
            if tuple(value.shape) != wanted[key]
        ),
    )
    if not report.exact:
        raise PublicFilesError(f"{path}: does not fit {made_by.__name__}: {report}")
    vae.load_state_dict({key: value.to(dtype) for key, value in state.items()}, assign=True)
    return vae.eval()
