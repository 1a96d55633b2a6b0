"""Keypoints to skeleton maps, drawn with OpenCV.

Limbs have fixed, distinct colours, so that left and right, upper and lower arm can be told apart. Points are placed at
1/16 of a pixel: at 64 x 64 a whole pixel would already be 1.6 % of the side.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from omnihuman_conditions.pose.files import load_pose
from omnihuman_conditions.pose.keypoints import FACE, LEFT_HAND, LIMBS, RIGHT_HAND
from omnihuman_core.contracts.extractor import NUM_KEYPOINTS

_SHIFT = 4
_FINGERS = tuple(
    (0 if joint == 0 else first + joint - 1, first + joint) for first in (1, 5, 9, 13, 17) for joint in range(4)
)
_WRISTS = {LEFT_HAND: 9, RIGHT_HAND: 10}


@dataclass(frozen=True, kw_only=True)
class SkeletonConfig:
    """How a skeleton is drawn.

    Attributes:
        score_threshold: Points below this confidence are not drawn.
        hands: ``disc`` marks each hand by one disc, ``lines`` draws every finger.
        face: Draw the 68 face points. Off where the voice alone shall move the mouth.
        line_width: Width of a limb as a fraction of the short side.
        disc_radius: Radius of a hand disc as a fraction of the short side.
    """

    score_threshold: float
    hands: Literal["disc", "lines"]
    face: bool
    line_width: float
    disc_radius: float

    def __post_init__(self) -> None:
        if self.hands not in ("disc", "lines"):
            raise ValueError(f"SkeletonConfig.hands must be disc or lines, got {self.hands!r}")
        for name in ("line_width", "disc_radius"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"SkeletonConfig.{name} must be in (0, 1], got {getattr(self, name)}")

    @classmethod
    def tiny(cls) -> Self:
        """Readable at 64 x 64: a disc for each hand, no face points."""
        return cls(score_threshold=0.3, hands="disc", face=False, line_width=0.02, disc_radius=0.04)

    @classmethod
    def full(cls) -> Self:
        """For 480p and more: fingers and face points."""
        return cls(score_threshold=0.3, hands="lines", face=True, line_width=0.008, disc_radius=0.012)


def _colours(count: int, value: float) -> list[tuple[float, float, float]]:
    return [tuple(255 * c for c in colorsys.hsv_to_rgb(i / count, 1.0, value)) for i in range(count)]  # type: ignore[misc]


_LIMB_COLOURS = _colours(len(LIMBS), 0.8)
_FINGER_COLOURS = _colours(len(_FINGERS), 1.0)
_HAND_COLOURS = {LEFT_HAND: (255.0, 255.0, 0.0), RIGHT_HAND: (0.0, 255.0, 255.0)}


class SkeletonExtractor:
    """Draws skeleton maps.

    Example:
        >>> extractor = SkeletonExtractor(SkeletonConfig.tiny())
        >>> extractor.extract(torch.rand(5, 133, 3), size=(64, 48)).shape
        torch.Size([3, 5, 64, 48])
    """

    config_class = SkeletonConfig
    presets: ClassVar[dict[str, Callable[[], SkeletonConfig]]] = {
        "tiny": SkeletonConfig.tiny,
        "full": SkeletonConfig.full,
    }

    def __init__(self, config: SkeletonConfig) -> None:
        self.config = config

    def extract(self, raw: Tensor, *, size: tuple[int, int]) -> Tensor:
        """Skeleton maps of one person.

        Args:
            raw: Keypoints ``(T, 133, 3)`` in COCO-WholeBody order: x and y as fractions of width and height, score. A
                point that is not finite counts as missing.
            size: Height and width of the maps in pixels.

        Returns:
            ``(3, T, H, W)`` float32 in [0, 1].

        Raises:
            ValueError: another shape.
        """
        if raw.ndim != 3 or tuple(raw.shape[1:]) != (NUM_KEYPOINTS, 3):
            raise ValueError(f"keypoints must be (T, {NUM_KEYPOINTS}, 3), got {tuple(raw.shape)}")
        height, width = size
        keypoints = raw.detach().cpu().numpy().astype(np.float64)
        valid = np.isfinite(keypoints).all(-1) & (keypoints[..., 2] >= self.config.score_threshold)
        # Far outside the picture a point only gives a direction; the limit keeps fixed-point numbers in range.
        position = np.clip(np.nan_to_num(keypoints[..., :2]), -2.0, 3.0) * (width, height) - 0.5
        points = np.rint(position * (1 << _SHIFT)).astype(np.int32).tolist()
        maps = np.zeros((raw.shape[0], height, width, 3), dtype=np.uint8)
        for picture, frame_points, frame_valid in zip(maps, points, valid.tolist(), strict=True):
            self._draw(picture, frame_points, frame_valid)
        return torch.from_numpy(maps).permute(3, 0, 1, 2).float().div_(255)  # (3, T, H, W)

    def load(self, path: str | Path, *, fps: float | None = None) -> Tensor:
        """Keypoints ``(T, 133, 3)`` of a pose file, resampled to ``fps`` where given; see :func:`load_pose`."""
        sequence = load_pose(path)
        return (sequence if fps is None else sequence.resample(fps)).keypoints

    def _draw(self, picture: np.ndarray, points: list[list[int]], valid: list[bool]) -> None:
        import cv2

        config = self.config
        short = min(picture.shape[:2])
        thickness = max(1, round(config.line_width * short))
        radius = round(config.disc_radius * short * (1 << _SHIFT))
        for (a, b), colour in zip(LIMBS, _LIMB_COLOURS, strict=True):
            if valid[a] and valid[b]:
                cv2.line(picture, points[a], points[b], colour, thickness, cv2.LINE_AA, _SHIFT)
        for hand, colour in _HAND_COLOURS.items():
            if config.hands == "disc":
                seen = [points[i] for i in hand if valid[i]] or [points[i] for i in [_WRISTS[hand]] if valid[i]]
                if seen:
                    centre = (sum(p[0] for p in seen) // len(seen), sum(p[1] for p in seen) // len(seen))
                    cv2.circle(picture, centre, radius, colour, -1, cv2.LINE_AA, _SHIFT)
                continue
            for (a, b), finger in zip(_FINGERS, _FINGER_COLOURS, strict=True):
                if valid[hand[a]] and valid[hand[b]]:
                    cv2.line(picture, points[hand[a]], points[hand[b]], finger, thickness, cv2.LINE_AA, _SHIFT)
        if config.face:
            for i in FACE:
                if valid[i]:
                    cv2.circle(
                        picture, points[i], max(radius // 4, 1 << _SHIFT), (255, 255, 255), -1, cv2.LINE_AA, _SHIFT
                    )
