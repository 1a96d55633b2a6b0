"""Measures read off frames, against the truth that drawing knows: lip sync, hands, colours, still backgrounds.

Frames are (3, T, H, W) in [-1, 1], drawn or generated. Every measure is soft, so that blurred frames are read well too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from omnihuman_train.data.characters.character import (
    LEFT_GLOVE,
    MOUTH_BOX_GROWTH,
    MOUTH_INTERIOR,
    RIGHT_GLOVE,
)
from omnihuman_train.data.characters.look import RGB
from omnihuman_train.data.characters.voices import FRAME_RATE

# share of the way from the skin to the inside of the mouth: lips stay below the first, the inside is above the second,
# and the edge of a blurred mouth lies half way
_SHUT_LEVEL, _OPEN_LEVEL = 0.35, 0.65
# area of an ellipse in units of the box that the drawing puts round it
_FULL_SHARE = 3.14159265 / 4 / (MOUTH_BOX_GROWTH[0] * MOUTH_BOX_GROWTH[1])


@dataclass(frozen=True, kw_only=True)
class LipSync:
    """Pearson correlation of the opening read and the true one: at lag 0, at the best lag, and that lag in frames."""

    correlation: float
    best_correlation: float
    best_lag: int


@dataclass(frozen=True, kw_only=True)
class HandError:
    """Mean distance in short sides over the hands found, NaN without any, and the share of visible hands not found."""

    distance: float
    missing: float


def _to_unit(frames: Tensor) -> Tensor:
    if frames.ndim != 4 or frames.shape[0] != 3:
        raise ValueError(f"frames has shape {tuple(frames.shape)}; give (3, T, H, W) in [-1, 1]")
    return (frames.float() + 1) / 2


def _distance_to(picture: Tensor, colour: RGB) -> Tensor:
    """Euclidean RGB distance of every pixel: (3, ...) in [0, 1] -> (...)."""
    target = torch.tensor(colour, dtype=picture.dtype, device=picture.device)
    return (picture - target.reshape(3, *[1] * (picture.ndim - 1))).square().sum(0).sqrt()


def mouth_opening(frames: Tensor, mouth_box: Tensor) -> Tensor:
    """Opening of each mouth, read as the area of the mouth's inside colour within the box of all frames together.

    Args:
        frames: (3, T, H, W) in [-1, 1].
        mouth_box: (T, P, 4) boxes of the truth, in widths and heights.

    Returns:
        (T, P): 0 for a shut mouth, about 1 for a mouth that is fully open.

    Raises:
        ValueError: frames or boxes of another shape.
    """
    picture = _to_unit(frames)
    length, height, width = picture.shape[1:]
    if mouth_box.ndim != 3 or mouth_box.shape[0] != length or mouth_box.shape[2] != 4:
        raise ValueError(f"mouth_box has shape {tuple(mouth_box.shape)}; give ({length}, P, 4) for these frames")
    openings = []
    for box in mouth_box.unbind(1):
        size = ((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])).mean() * height * width
        x0, y0, x1, y1 = *box[:, :2].amin(0).tolist(), *box[:, 2:].amax(0).tolist()
        left, right = int(x0 * width), min(width, int(x1 * width) + 1)
        top, bottom = int(y0 * height), min(height, int(y1 * height) + 1)
        distance = _distance_to(picture[:, :, top:bottom, left:right], MOUTH_INTERIOR)  # (T, h, w)
        # corners of the box may show dark hair beside the chin: only the ellipse within it is read
        within_x = (torch.arange(left, right) + 0.5) / width * 2 - x0 - x1
        within_y = (torch.arange(top, bottom) + 0.5) / height * 2 - y0 - y1
        within = (within_x / (x1 - x0)).square() + (within_y[:, None] / (y1 - y0)).square() < 0.92**2
        within[distance.shape[1] // 2, distance.shape[2] // 2] = True
        distance = distance[:, within]  # (T, L)
        # most of what is read is skin while the mouth is shut: the upper quartile is its distance
        skin = distance.flatten().quantile(0.75).clamp_min(0.1)
        inside = 1 - distance / skin
        area = ((inside - _SHUT_LEVEL) / (_OPEN_LEVEL - _SHUT_LEVEL)).clamp(0, 1).sum(dim=1)
        openings.append(area / (size * _FULL_SHARE))
    return torch.stack(openings, dim=1)


def pearson(first: Tensor, second: Tensor) -> float:
    """Pearson correlation of two (T,) curves; 0 where either is constant."""
    first, second = first.double() - first.double().mean(), second.double() - second.double().mean()
    norm = first.norm() * second.norm()
    return float(first @ second / norm) if norm > 1e-9 else 0.0


def lip_sync(opening: Tensor, truth: Tensor, max_lag: int = 5) -> LipSync:
    """How the opening read off frames follows the truth.

    A positive lag means that the frames are late.

    Args:
        opening: (T,) read off frames, T > max_lag + 2.
        truth: (T,).
        max_lag: in frames.

    Raises:
        ValueError: curves of different or too short length.
    """
    if opening.ndim != 1 or opening.shape != truth.shape or len(truth) <= max_lag + 2:
        raise ValueError(
            f"opening is {tuple(opening.shape)}, truth {tuple(truth.shape)}; give curves of one length > {max_lag + 2}"
        )
    length = len(truth)
    by_lag = {
        lag: pearson(opening[max(lag, 0) : length + min(lag, 0)], truth[max(-lag, 0) : length - max(lag, 0)])
        for lag in range(-max_lag, max_lag + 1)
    }
    # the smaller lag wins a tie
    best = max(by_lag, key=lambda lag: (by_lag[lag], -abs(lag)))
    return LipSync(correlation=by_lag[0], best_correlation=by_lag[best], best_lag=best)


def hand_error(frames: Tensor, hands: Tensor) -> HandError:
    """Distance between the gloves seen and the true hands.

    With two persons each glove is looked for in its own person's column of the picture.

    Args:
        frames: (3, T, H, W) in [-1, 1].
        hands: (T, P, 2, 3) left, right: x, y in widths and heights, visible flag.

    Raises:
        ValueError: frames or hands of another shape.
    """
    picture = _to_unit(frames)
    length, height, width = picture.shape[1:]
    if hands.ndim != 4 or hands.shape[0] != length or hands.shape[2:] != (2, 3):
        raise ValueError(f"hands has shape {tuple(hands.shape)}; give ({length}, P, 2, 3) for these frames")
    persons, short = hands.shape[1], min(height, width)
    distances, missing, seen = [], 0, 0
    xs, ys = torch.arange(width) + 0.5, torch.arange(height) + 0.5
    for side, glove in enumerate((LEFT_GLOVE, RIGHT_GLOVE)):
        likeness = (1 - _distance_to(picture, glove) / 0.32).clamp_min(0)  # (T, H, W)
        for person in range(persons):
            columns = slice(person * width // persons, (person + 1) * width // persons)
            weight = likeness[:, :, columns]
            total = weight.sum(dim=(1, 2))
            x = (weight.sum(1) @ xs[columns]) / total.clamp_min(1e-6)
            y = (weight.sum(2) @ ys) / total.clamp_min(1e-6)
            truth = hands[:, person, side]
            visible = truth[:, 2] > 0.5
            # a glove is a disc of several pixels: less than two pixels' worth of its colour is none
            found = visible & (total > 2)
            error = torch.hypot(x - truth[:, 0] * width, y - truth[:, 1] * height) / short
            distances.append(error[found])
            missing += int((visible & ~found).sum())
            seen += int(visible.sum())
    every = torch.cat(distances)
    return HandError(
        distance=float(every.mean()) if len(every) else float("nan"), missing=missing / seen if seen else 0.0
    )


def _median_colour(picture: Tensor, boxes: Sequence[Sequence[float]]) -> RGB:
    """RGB of (3, T, H, W) in [0, 1]: the median over each box and all frames, averaged over boxes."""
    height, width = picture.shape[2:]
    medians = []
    for x0, y0, x1, y1 in boxes:
        left, top = min(round(x0 * width), width - 1), min(round(y0 * height), height - 1)
        right, bottom = max(round(x1 * width), left + 1), max(round(y1 * height), top + 1)
        pixels = rearrange(picture[:, :, top:bottom, left:right], "c t h w -> c (t h w)")
        medians.append(pixels.median(dim=1).values)
    red, green, blue = torch.stack(medians).mean(0).tolist()
    return red, green, blue


def region_colours(frames: Tensor, attributes: Mapping[str, Any]) -> dict[str, RGB]:
    """RGB in [0, 1] of the background and of skin, hair and clothes of the first person.

    Args:
        frames: (3, T, H, W) or one picture (3, H, W), in [-1, 1].
        attributes: of the clip: where the regions are.
    """
    picture = _to_unit(frames[:, None] if frames.ndim == 3 else frames)
    colours = {"background": _median_colour(picture, attributes["background_regions"])}
    for name, box in attributes["people"][0]["regions"].items():
        colours[name] = _median_colour(picture, [box])
    return colours


def colour_error(frames: Tensor, attributes: Mapping[str, Any]) -> dict[str, float]:
    """Euclidean RGB distance per region between what is seen and what the attributes say, and their "mean"."""
    truth = {"background": attributes["background"], **attributes["people"][0]["colours"]}
    errors = {
        name: float((torch.tensor(colour) - torch.tensor(truth[name])).norm())
        for name, colour in region_colours(frames, attributes).items()
    }
    return {**errors, "mean": sum(errors.values()) / len(errors)}


def background_drift(frames: Tensor, attributes: Mapping[str, Any]) -> float:
    """Change of the background from the first to the last second: largest change of a channel's median, in [0, 1].

    A clip with a camera pan drifts by design.

    Args:
        frames: (3, T, H, W) in [-1, 1].
        attributes: of the clip: where the background is seen.
    """
    second = round(FRAME_RATE)
    first, last = (region_colours(part, attributes)["background"] for part in (frames[:, :second], frames[:, -second:]))
    return max(abs(a - b) for a, b in zip(first, last, strict=True))
