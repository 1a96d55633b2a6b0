"""Where characters stand in a picture, and what is behind them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnihuman_train.data.characters.look import BACKGROUND_COLOURS, vary

# where the background is read, as x0, y0, x1, y1
CORNERS = ((0.0, 0.0, 0.12, 0.1), (0.88, 0.0, 1.0, 0.1))


def layout(framing: str, persons: int, height: int, width: int) -> tuple[float, float]:
    """Pixels per head unit, and the resting height of the head in heights of the picture."""
    share = width / persons
    if framing == "whole":
        return min(0.178 * height, (0.275 if persons == 1 else 0.335) * share), 0.26
    if framing == "face":
        unit, rest, shown = min(0.36 * height, (0.37 if persons == 1 else 0.42) * share), 0.5, 1.7
    else:
        unit, rest, shown = min(0.29 * height, (0.265 if persons == 1 else 0.335) * share), 0.38, 2.5
    # a narrow picture shows no more of the body than `shown` head units: the head sinks instead
    return unit, max(rest, 1 - shown * unit / height)


def make_background(
    rng: np.random.Generator, height: int, width: int, pan: Tensor | None
) -> tuple[Tensor, dict[str, Any]]:
    """A still, smooth background (1 or N, 3, H, W), and what it is."""
    name = list(BACKGROUND_COLOURS)[int(rng.integers(len(BACKGROUND_COLOURS)))]
    colour = vary(rng, BACKGROUND_COLOURS[name], 0.04)
    style = ("flat", "gradient", "stripes")[int(rng.integers(3))]
    base = torch.tensor(colour)[None, :, None, None]
    xs, ys = torch.linspace(0, 1, width)[None, :], torch.linspace(0, 1, height)[:, None]
    if style == "gradient":
        # starts at the named colour on top, where it is read
        change = float(rng.uniform(0.06, 0.2)) * (1 if rng.random() < 0.5 else -1)
        pattern = (ys * change).expand(height, width)[None, None]
    elif style == "stripes":
        angle, count = float(rng.uniform(0, np.pi)), float(rng.uniform(1.5, 3.0))
        phase = 2 * np.pi * count * (np.cos(angle) * xs + np.sin(angle) * ys) + float(rng.uniform(0, 6))
        shift = torch.zeros(1) if pan is None else 2 * np.pi * count * np.cos(angle) * pan / width
        pattern = 0.05 * torch.sin(phase[None, None] - shift[:, None, None, None])
    else:
        pattern = torch.zeros(1, 1, height, width)
    image = (base + pattern).clamp(0, 1)
    # what is seen in the corners, where nothing stands in front: the mean of a pattern is not what is there
    corners = torch.stack([image[:, :, _rows(b, height), _columns(b, width)].mean(dim=(0, 2, 3)) for b in CORNERS])
    red, green, blue = corners.mean(0).tolist()
    described = {"background_name": name, "background_style": style, "background": (red, green, blue)}
    return image, described


def _rows(box: tuple[float, float, float, float], height: int) -> slice:
    return slice(round(box[1] * height), max(round(box[3] * height), 1))


def _columns(box: tuple[float, float, float, float], width: int) -> slice:
    return slice(min(round(box[0] * width), width - 1), max(round(box[2] * width), 1))
