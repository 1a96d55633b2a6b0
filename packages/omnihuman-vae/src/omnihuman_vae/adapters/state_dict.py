"""State-dict adapters of the VAEs: the key maps between public layouts and ours.

Our modules carry the names of the public folders, so those maps are the identity and only check that nothing is missing
or left over. The authors' single files name the same tensors differently; shapes agree everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from omnihuman_vae.adapters.hunyuan_config import HunyuanVideoVAEConfig
from omnihuman_vae.adapters.hunyuan_video import HunyuanVideoVAE
from omnihuman_vae.adapters.wan import WanVAE
from omnihuman_vae.adapters.wan_config import WanVAEConfig


class _RenamingAdapter:
    """Renames tensors one to one; see :class:`~omnihuman_core.contracts.StateDictAdapter`."""

    def __init__(self, public_by_native: Mapping[str, str]) -> None:
        self.public_by_native = dict(public_by_native)
        self.native_by_public = {public: native for native, public in public_by_native.items()}

    def to_native(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Public layout to ours.

        Raises:
            ValueError: a key is not of this layout and size.
        """
        return _renamed(state, self.native_by_public)

    def from_native(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ours to the public layout.

        Raises:
            ValueError: a key is not of a module of this size.
        """
        return _renamed(state, self.public_by_native)


class WanVAEDiffusersAdapter(_RenamingAdapter):
    """Layout of ``diffusers.AutoencoderKLWan``."""

    config_class: ClassVar[type[WanVAEConfig]] = WanVAEConfig

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__({key: key for key in _wan_keys(config)})
        self.config = config


class WanVAEOriginalAdapter(_RenamingAdapter):
    """Layout of the single file that Wan's authors published (``Wan2.1_VAE``)."""

    config_class: ClassVar[type[WanVAEConfig]] = WanVAEConfig

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__({key: _original_wan_name(key, config) for key in _wan_keys(config)})
        self.config = config


class HunyuanVideoVAEDiffusersAdapter(_RenamingAdapter):
    """Layout of ``diffusers.AutoencoderKLHunyuanVideo``."""

    config_class: ClassVar[type[HunyuanVideoVAEConfig]] = HunyuanVideoVAEConfig

    def __init__(self, config: HunyuanVideoVAEConfig) -> None:
        super().__init__({key: key for key in _hunyuan_keys(config)})
        self.config = config


class HunyuanVideoVAEOriginalAdapter(_RenamingAdapter):
    """Layout of the single file that HunyuanVideo's authors published: the folder's names behind ``vae.``."""

    config_class: ClassVar[type[HunyuanVideoVAEConfig]] = HunyuanVideoVAEConfig
    _prefix = "vae."

    def __init__(self, config: HunyuanVideoVAEConfig) -> None:
        super().__init__({key: self._prefix + key for key in _hunyuan_keys(config)})
        self.config = config

    def to_native(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Public layout to ours; parts of the training beside the VAE, such as a discriminator, are left out."""
        return super().to_native({key: value for key, value in state.items() if key.startswith(self._prefix)})


def _renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    left_over = [key for key in state if key not in names]
    if left_over:
        raise ValueError(f"keys that are not of this layout and size: {', '.join(left_over[:8])}")
    return {names[key]: value for key, value in state.items()}


def _wan_keys(config: WanVAEConfig) -> list[str]:
    with torch.device("meta"):
        return list(WanVAE(config).state_dict())


def _hunyuan_keys(config: HunyuanVideoVAEConfig) -> list[str]:
    with torch.device("meta"):
        return list(HunyuanVideoVAE(config).state_dict())


# Residual blocks are sequences in the original: norm, SiLU, convolution, norm, SiLU, dropout, convolution.
_ORIGINAL_BLOCK = {
    "norm1.": "residual.0.",
    "conv1.": "residual.2.",
    "norm2.": "residual.3.",
    "conv2.": "residual.6.",
    "conv_shortcut.": "shortcut.",
}
_ORIGINAL_STEM = {
    "quant_conv.": "conv1.",
    "post_quant_conv.": "conv2.",
    "encoder.conv_in.": "encoder.conv1.",
    "decoder.conv_in.": "decoder.conv1.",
    "encoder.norm_out.": "encoder.head.0.",
    "encoder.conv_out.": "encoder.head.2.",
    "decoder.norm_out.": "decoder.head.0.",
    "decoder.conv_out.": "decoder.head.2.",
}


def _original_wan_name(key: str, config: WanVAEConfig) -> str:
    """Name of one of our tensors in the original file."""
    for ours, theirs in _ORIGINAL_STEM.items():
        if key.startswith(ours):
            return theirs + key.removeprefix(ours)
    if match := re.fullmatch(r"(encoder|decoder)\.mid_block\.attentions\.0\.(.+)", key):
        return f"{match[1]}.middle.1.{match[2]}"
    if match := re.fullmatch(r"(encoder|decoder)\.mid_block\.resnets\.(\d)\.(.+)", key):
        return f"{match[1]}.middle.{2 * int(match[2])}.{_original_block_name(match[3])}"
    if match := re.fullmatch(r"encoder\.down_blocks\.(\d+)\.(.+)", key):
        return f"encoder.downsamples.{match[1]}.{_original_block_name(match[2])}"
    if match := re.fullmatch(r"decoder\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.(.+)", key):
        # One flat list: the blocks of a level, then its upsampling.
        index = int(match[1]) * (config.blocks + 2)
        index += int(match[3]) if match[2] == "resnets" else config.blocks + 1
        return f"decoder.upsamples.{index}.{_original_block_name(match[4])}"
    raise ValueError(f"{key!r} is no tensor of Wan 2.1's VAE")


def _original_block_name(key: str) -> str:
    for ours, theirs in _ORIGINAL_BLOCK.items():
        if key.startswith(ours):
            return theirs + key.removeprefix(ours)
    return key
