"""A narrow VGG16 in the layout and under the names of torchvision."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Configuration D of Simonyan and Zisserman, table 1, each width divided by 8; M is a pooling.
PLAN = (8, 8, "M", 16, 16, "M", 32, 32, 32, "M", 64, 64, 64, "M", 64, 64, 64, "M")


def vgg16() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    width = 3
    for entry in PLAN:
        if isinstance(entry, str):
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(width, entry, 3, padding=1), nn.ReLU()]
            width = entry
    return nn.Sequential(*layers)


def vgg_weights() -> dict[str, Tensor]:
    weights = {f"features.{key}": value.detach().clone() for key, value in vgg16().state_dict().items()}
    return {**weights, "classifier.0.weight": torch.zeros(2, 2)}
