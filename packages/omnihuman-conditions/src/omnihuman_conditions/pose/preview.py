"""Pictures that show whether the keypoints of a video are right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from omnihuman_conditions.pose.keypoints import PoseSequence
from omnihuman_conditions.pose.skeleton import SkeletonConfig, SkeletonExtractor

# Strength of the skeleton over the picture behind it.
_OPACITY = 0.8


def draw_preview(frames: Iterable[np.ndarray], sequence: PoseSequence) -> Iterator[np.ndarray]:
    """The frames with their skeletons drawn on them, fingers and face points included.

    Args:
        frames: Frames ``(H, W, 3)`` uint8 RGB that the sequence was found in; the shorter of the two ends the preview.
        sequence: Their keypoints.

    Yields:
        Frames ``(H, W, 3)`` uint8 RGB.
    """
    skeleton = SkeletonExtractor(SkeletonConfig.full())
    # Not strict: a preview of the first seconds is a fair thing to ask for.
    for frame, keypoints in zip(frames, sequence.keypoints, strict=False):
        drawn = skeleton.extract(keypoints[None], size=(frame.shape[0], frame.shape[1]))[:, 0]
        lines = drawn.permute(1, 2, 0).numpy()  # (H, W, 3)
        cover = _OPACITY * lines.max(axis=2, keepdims=True)
        yield np.rint(frame * (1 - cover) + 255 * _OPACITY * lines).clip(0, 255).astype(np.uint8)
