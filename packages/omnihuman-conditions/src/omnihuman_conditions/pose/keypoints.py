"""Keypoints of a person over time: the COCO-WholeBody order, and files that hold them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from omnihuman_core.contracts.extractor import NUM_KEYPOINTS

# COCO-WholeBody order: 17 body, 6 feet, 68 face, 21 left hand, 21 right hand.
BODY = range(17)
FEET = range(17, 23)
FACE = range(23, 91)
LEFT_HAND = range(91, 112)
RIGHT_HAND = range(112, 133)

# Pairs of body and foot points that a skeleton connects.
LIMBS = (
    (5, 7), (7, 9), (6, 8), (8, 10),
    (5, 6), (5, 11), (6, 12), (11, 12),
    (11, 13), (13, 15), (12, 14), (14, 16),
    (0, 1), (0, 2), (1, 3), (2, 4), (0, 5), (0, 6),
    (15, 17), (15, 18), (15, 19), (16, 20), (16, 21), (16, 22),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PoseSequence:
    """Keypoints of one person.

    Attributes:
        keypoints: ``(T, 133, 3)`` float32: x and y as fractions of width and height, score in [0, 1]. A missing point
            has score 0.
        fps: Frames per second; frame ``i`` stands at ``(i + 0.5) / fps`` seconds.
        aspect: Width over height of the picture that the fractions are of, or None where nobody said.
    """

    keypoints: Tensor
    fps: float
    aspect: float | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.keypoints.shape)
        if len(shape) != 3 or shape[0] < 1 or shape[1:] != (NUM_KEYPOINTS, 3):
            raise ValueError(f"pose keypoints must be (T >= 1, {NUM_KEYPOINTS}, 3), got {shape}")
        if not 0 < self.fps <= 1000:
            raise ValueError(f"pose fps must be in (0, 1000], got {self.fps}")
        if self.aspect is not None and not 0.01 <= self.aspect <= 100:
            raise ValueError(f"pose aspect must be in [0.01, 100], got {self.aspect}")
        if not torch.isfinite(self.keypoints).all():
            raise ValueError("pose keypoints hold NaN or infinite values; give a missing point score 0")

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.keypoints.shape[0] / self.fps

    def resample(self, fps: float) -> Self:
        """The same motion at another frame rate, by linear interpolation between the points that are not missing."""
        if fps == self.fps:
            return self
        if not 0 < fps <= 1000:
            raise ValueError(f"pose fps must be in (0, 1000], got {fps}")
        count = max(1, round(self.seconds * fps))
        last = self.keypoints.shape[0] - 1
        position = ((torch.arange(count, dtype=torch.float64) + 0.5) * self.fps / fps - 0.5).clamp(0, last)
        left = position.floor().long()
        right = (left + 1).clamp(max=last)
        weight = (position - left).float()[:, None, None]
        a, b = self.keypoints[left], self.keypoints[right]
        score = torch.lerp(a[..., 2:], b[..., 2:], weight)
        from_a, from_b = (1 - weight) * (a[..., 2:] > 0), weight * (b[..., 2:] > 0)
        total = from_a + from_b
        mixed = (from_a * a[..., :2] + from_b * b[..., :2]) / total.clamp(min=1e-12)
        xy = torch.where(total > 0, mixed, a[..., :2])
        return replace(self, keypoints=torch.cat([xy, score], -1), fps=fps)
