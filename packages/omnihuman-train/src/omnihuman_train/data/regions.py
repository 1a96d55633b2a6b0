"""Where mouths and hands are: boxes in a picture, and the latent positions that they touch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from omnihuman_core.contracts import NUM_KEYPOINTS, LatentSpec

# COCO-WholeBody: lips among the 68 points of the face; the two hands.
LIPS, HANDS = slice(71, 91), (slice(91, 112), slice(112, 133))

# A box round lips that were found, grown by this much of its size on each side.
_LIP_GROWTH = 0.35

_MIN_SCORE = 0.3


def regions(known: Mapping[str, Tensor], spec: LatentSpec, frames: int, height: int, width: int) -> dict[str, Tensor]:
    """Latent positions that show mouths and hands, ``(t, h, w)`` bool each; none where nothing is known of them.

    Args:
        known: ``mouth_box`` (T, P, 4) and ``hands`` (T, P, 2, 3) where they are known exactly, else ``keypoints``.
        spec: Latent arithmetic.
        frames: Pixel frames.
        height: Pixels.
        width: Pixels.
    """
    mouths, hands = boxes(known, frames)
    return {
        "mouth_region": latent_region(mouths, spec, height, width),
        "hand_region": latent_region(hands, spec, height, width),
    }


def boxes(known: Mapping[str, Tensor], frames: int) -> tuple[Tensor, Tensor]:
    """Boxes ``(T, P, 4)`` in [0, 1] round mouths and round hands; without area where nothing is known."""
    keypoints = known.get("keypoints", torch.zeros(frames, NUM_KEYPOINTS, 3))
    mouths = known["mouth_box"] if "mouth_box" in known else box_round([keypoints[:, LIPS]], _LIP_GROWTH)
    hands = hand_boxes(known["hands"]) if "hands" in known else box_round([keypoints[:, part] for part in HANDS], 0.1)
    return mouths.float(), hands.float()


def box_round(groups: Iterable[Tensor], growth: float) -> Tensor:
    """Boxes ``(T, groups, 4)`` in [0, 1] round the visible points of each group ``(T, n, 3)``; no area without any."""
    found = []
    for points in groups:
        seen = points[..., 2:] >= _MIN_SCORE
        low = torch.where(seen, points[..., :2], torch.inf).amin(1)  # (T, 2)
        high = torch.where(seen, points[..., :2], -torch.inf).amax(1)
        margin = (high - low) * growth
        box = torch.cat([low - margin, high + margin], -1)
        found.append(torch.where(seen.any(1), box, torch.zeros(())))
    return torch.stack(found, 1).clamp(0, 1)


def hand_boxes(hands: Tensor, margin: float = 0.06) -> Tensor:
    """Boxes ``(T, 4, 4)`` in [0, 1] round the visible hands ``(T, 2, 2, 3)``; no area where a hand is not visible."""
    points = hands.flatten(1, 2)  # (T, 4, 3)
    return torch.cat([points[..., :2] - margin, points[..., :2] + margin], -1) * points[..., 2:]


def latent_region(boxes: Tensor, spec: LatentSpec, height: int, width: int) -> Tensor:
    """Latent positions that any of the boxes touches in any frame behind them.

    Args:
        boxes: ``(T, P, 4)`` as ``x0, y0, x1, y1`` in [0, 1]; a box without area marks nothing.
        spec: Latent arithmetic.
        height: Pixel height of the video.
        width: Pixel width of the video.

    Returns:
        ``(t, h, w)`` bool.
    """
    pixels = box_mask(boxes, *spec.latent_size(height, width))
    frames = range(spec.latent_frames(len(boxes)))
    return torch.stack([pixels[list(spec.frame_range(i))].any(0) for i in frames])


def box_mask(boxes: Tensor, height: int, width: int) -> Tensor:
    """Cells of a ``height`` x ``width`` grid that boxes ``(T, P, 4)`` in [0, 1] touch, ``(T, height, width)`` bool."""
    x0, y0, x1, y1 = boxes.unbind(-1)  # (T, P)
    left, right = torch.arange(width) / width, torch.arange(1, width + 1) / width
    top, bottom = torch.arange(height) / height, torch.arange(1, height + 1) / height
    across = (left < x1[..., None]) & (right > x0[..., None])  # (T, P, width)
    down = (top < y1[..., None]) & (bottom > y0[..., None])  # (T, P, height)
    there = ((x1 > x0) & (y1 > y0))[..., None, None]
    return (there & down[..., :, None] & across[..., None, :]).any(1)
