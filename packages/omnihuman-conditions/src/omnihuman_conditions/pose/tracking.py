"""From people found in single frames to one person over time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from omnihuman_conditions.pose.files import MAX_FRAMES
from omnihuman_conditions.pose.keypoints import BODY, PoseSequence
from omnihuman_core.contracts.extractor import NUM_KEYPOINTS


@runtime_checkable
class PoseEstimator(Protocol):
    """Finds people in one frame. Any whole-body model can be wrapped as one."""

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """Keypoints ``(people, 133, 3)`` of a frame ``(H, W, 3)`` uint8 RGB.

        COCO-WholeBody order; x and y in pixels, with the centre of the first pixel at 0, and a score in [0, 1].
        """
        ...


def follow_person(estimator: PoseEstimator, frames: Iterable[np.ndarray], *, fps: float) -> PoseSequence:
    """One person through a video: the best seen of the first frame with people, then whoever is nearest.

    A frame without people has score 0 everywhere.

    Args:
        estimator: Finds people in a frame.
        frames: Frames ``(H, W, 3)`` uint8 RGB of one size.
        fps: Their rate.

    Raises:
        ValueError: no frame, too many, or nobody in any of them; or the estimator returns another shape.
    """
    found: list[np.ndarray] = []
    last: np.ndarray | None = None
    aspect: float | None = None
    for index, frame in enumerate(frames):
        if index >= MAX_FRAMES:
            raise ValueError(f"video has more than {MAX_FRAMES} frames; cut the part you need")
        aspect = frame.shape[1] / frame.shape[0]
        people = _people(estimator(frame), frame, index)
        if len(people):
            chosen = people[_best_seen(people) if last is None else _nearest(people, last)]
            found.append(chosen)
            # A point that is hidden now is remembered where it was.
            last = chosen if last is None else np.where(chosen[:, 2:] > 0, chosen, last)
        else:
            found.append(np.zeros((NUM_KEYPOINTS, 3)))
    if not found:
        raise ValueError("video has no frame")
    if last is None:
        raise ValueError(f"nobody was found in any of the {len(found)} frames of the video")
    return PoseSequence(keypoints=torch.from_numpy(np.stack(found)).float(), fps=fps, aspect=aspect)


def _people(answer: np.ndarray, frame: np.ndarray, index: int) -> np.ndarray:
    people = np.asarray(answer, dtype=np.float64)
    if people.ndim != 3 or people.shape[1:] != (NUM_KEYPOINTS, 3):
        raise ValueError(
            f"pose model must find {NUM_KEYPOINTS} whole-body points, frame {index} has shape {people.shape}"
        )
    finite = np.isfinite(people).all(-1, keepdims=True)
    people = np.where(finite, people, 0.0)
    height, width = frame.shape[:2]
    people[..., :2] = (people[..., :2] + 0.5) / (width, height)
    people[..., 2] = np.clip(people[..., 2], 0, 1)
    return people


def _best_seen(people: np.ndarray) -> int:
    """The person with the highest sum of scores times size: large and well visible."""
    low, high = people[:, BODY, :2].min(1), people[:, BODY, :2].max(1)
    size = np.sqrt(np.prod(np.maximum(high - low, 1e-6), axis=-1))
    return int(np.argmax(people[:, BODY, 2].sum(-1) * size))


def _nearest(people: np.ndarray, last: np.ndarray) -> int:
    weight = people[:, BODY, 2] * (last[BODY, 2] > 0) + 1e-9
    distance = np.linalg.norm(people[:, BODY, :2] - last[BODY, :2], axis=-1)
    return int(np.argmin((distance * weight).sum(-1) / weight.sum(-1)))
