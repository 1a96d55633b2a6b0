"""Perceptual distance on the features of a VGG, from a local weights file.

Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, equation 1 (LPIPS).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from omnihuman_core.checkpoint import load_safetensors

# ImageNet's mean and deviation, for pixels in [-1, 1].
MEAN = (-0.030, -0.088, -0.188)
STD = (0.458, 0.448, 0.450)
# Convolutions of VGG16 between two poolings; the distance looks at the last one of each block.
BLOCKS = (2, 2, 3, 3, 3)
# Keys of torchvision's VGG16, and the learnt channel weights of LPIPS where the folder has them.
CONVOLUTION = re.compile(r"features\.(\d+)\.(weight|bias)")
CHANNEL_WEIGHTS = "lin{}.model.1.weight"


class VGGDistance(nn.Module):
    """Mean squared distance of unit-length VGG16 features, summed over five blocks.

    Args:
        weights: ``features.<n>.weight`` and ``.bias`` as torchvision names them, of any widths; optionally
            ``lin<block>.model.1.weight`` ``(1, C, 1, 1)``, the channel weights of LPIPS, 1 otherwise. Other keys
            are passed over.

    Raises:
        ValueError: these are not the weights of a VGG16.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        found = sorted({int(match[1]) for key in weights if (match := CONVOLUTION.fullmatch(key))})
        if len(found) != sum(BLOCKS) or any(f"features.{n}.bias" not in weights for n in found):
            raise ValueError(f"a VGG16 has {sum(BLOCKS)} convolutions features.<n> with biases, got {len(found)}")
        for number, index in enumerate(found):
            self.register_buffer(f"weight{number}", weights[f"features.{index}.weight"].float())
            self.register_buffer(f"bias{number}", weights[f"features.{index}.bias"].float())
        for block in range(len(BLOCKS)):
            last = self.get_buffer(f"weight{sum(BLOCKS[: block + 1]) - 1}")
            lin = weights.get(CHANNEL_WEIGHTS.format(block), torch.ones(1, len(last), 1, 1))
            self.register_buffer(f"lin{block}", lin.float())
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))

    @classmethod
    def from_folder(cls, folder: str | Path) -> VGGDistance:
        """Read every ``*.safetensors`` file in ``folder``.

        Raises:
            ValueError: no such folder or file, or these are not the weights of a VGG16.
        """
        paths = sorted(Path(folder).glob("*.safetensors"))
        if not paths:
            raise ValueError(f"{folder}: no *.safetensors here; put torchvision's VGG16 weights there, or leave it out")
        weights = {key: value for path in paths for key, value in load_safetensors(path).items()}
        try:
            return cls(weights)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None

    def features(self, pictures: Tensor) -> list[Tensor]:
        """Features ``(N, C, h, w)`` of each block for pictures ``(N, 3, H, W)`` in [-1, 1]."""
        values, features, number = (pictures - self.mean) / self.std, [], 0
        for block, convolutions in enumerate(BLOCKS):
            if block:
                values = F.max_pool2d(values, 2)
            for _ in range(convolutions):
                weight, bias = self.get_buffer(f"weight{number}"), self.get_buffer(f"bias{number}")
                values, number = F.relu(F.conv2d(values, weight, bias, padding=1)), number + 1
            features.append(values)
        return features

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Distance of two videos ``(B, 3, T, H, W)`` in [-1, 1], the mean over frames; sides of at least 16."""
        if min(first.shape[-2:]) < 2 ** (len(BLOCKS) - 1):
            raise ValueError(f"height and width must be at least 16 for a VGG, got {tuple(first.shape[-2:])}")
        frames = [rearrange(video, "b c t h w -> (b t) c h w") for video in (first, second)]  # (B * T, 3, H, W)
        total = first.new_zeros(())
        for block, pair in enumerate(zip(*map(self.features, frames), strict=True)):
            mine, other = (_unit(features.float()) for features in pair)
            weighted = ((mine - other).square() * self.get_buffer(f"lin{block}")).sum(1)  # (N, h, w)
            total = total + weighted.mean()
        return total


def _unit(features: Tensor) -> Tensor:
    # The epsilon stands under the root too: where all features are 0, the root alone has no gradient.
    return features * torch.rsqrt(features.square().sum(1, keepdim=True) + 1e-10)
