"""Public video VAEs as :class:`omnihuman_core.contracts.vae.VideoVAE`: native classes and one through diffusers."""

from omnihuman_vae.adapters.diffusers_video import DiffusersVAEConfig, DiffusersVideoVAE
from omnihuman_vae.adapters.hunyuan_config import HunyuanVideoVAEConfig
from omnihuman_vae.adapters.hunyuan_video import HunyuanVideoVAE
from omnihuman_vae.adapters.loading import load, load_diffusers, load_hunyuan_video, load_wan
from omnihuman_vae.adapters.state_dict import (
    HunyuanVideoVAEDiffusersAdapter,
    HunyuanVideoVAEOriginalAdapter,
    WanVAEDiffusersAdapter,
    WanVAEOriginalAdapter,
)
from omnihuman_vae.adapters.wan import WanVAE
from omnihuman_vae.adapters.wan_config import WanVAEConfig

__all__ = [
    "DiffusersVAEConfig",
    "DiffusersVideoVAE",
    "HunyuanVideoVAE",
    "HunyuanVideoVAEConfig",
    "HunyuanVideoVAEDiffusersAdapter",
    "HunyuanVideoVAEOriginalAdapter",
    "WanVAE",
    "WanVAEConfig",
    "WanVAEDiffusersAdapter",
    "WanVAEOriginalAdapter",
    "load",
    "load_diffusers",
    "load_hunyuan_video",
    "load_wan",
]
