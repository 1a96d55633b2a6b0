"""Keypoints of a drawn character in the order of COCO-WholeBody (Jin et al. 2020, arXiv 2007.11858): 133 points.

17 of the body, 6 of the feet, 68 of the face, 21 of the left hand, 21 of the right. "Left" is the character's own left, the
right of the picture.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from omnihuman_train.data.characters.character import GLOVE_RADIUS, Look, Pose, mouth_geometry
from omnihuman_train.data.characters.motion import Motion

NUM_KEYPOINTS = 133
FEET, FACE, LEFT_HAND, RIGHT_HAND = 17, 23, 91, 112


def keypoints_of(
    look: Look, pose: Pose, motion: Motion, *, arms: bool, legs: bool, height: int, width: int
) -> Tensor:
    """Keypoints (N, 133, 3): x, y in widths and heights of the picture, score 1 where drawn and inside it, 0 else."""
    points = torch.zeros(pose.head.shape[0], NUM_KEYPOINTS, 3)

    def put(index: int, position: tuple[Tensor, Tensor]) -> None:
        points[:, index, 0], points[:, index, 1] = position[0] / width, position[1] / height
        points[:, index, 2] = 1.0

    put(0, pose.on_head(0.0, 0.24))
    for left, side in ((1, 1.0), (0, -1.0)):
        put(2 - left, pose.on_head(look.eye_gap * side, 0.02))
        put(4 - left, pose.on_head(0.95 * look.head_width * side, 0.2))
        put(6 - left, pose.on_body(0.52 * side, 1.2))
        hand = 1 - left
        if arms:
            put(8 - left, tuple(pose.elbows[:, hand].unbind(-1)))
            put(10 - left, tuple(pose.hands[:, hand].unbind(-1)))
            for finger in range(21):
                # the root, then five fingers of four joints fanned out over the upper half of the glove
                ring, spoke = ((finger - 1) % 4 + 1, (finger - 1) // 4) if finger else (0, 0)
                angle = math.pi * (0.15 + 0.175 * spoke)
                reach = pose.unit * GLOVE_RADIUS * 0.22 * ring
                centre = pose.hands[:, hand]
                position = (centre[:, 0] + side * reach * math.cos(angle), centre[:, 1] - reach * math.sin(angle))
                put((LEFT_HAND if left else RIGHT_HAND) + finger, position)
        if legs:
            put(12 - left, pose.on_body(0.27 * side, 2.15))
            put(14 - left, pose.on_body(0.29 * side, 2.75))
            put(16 - left, pose.on_body(0.3 * side, 3.35))
            for k, (dx, dy) in enumerate(((0.5, 3.6), (0.62, 3.55), (0.25, 3.6))):
                put(FEET + 3 * hand + k, pose.on_body(dx * side, dy))
    _put_face(put, look, pose, motion)
    inside = ((points[..., :2] >= 0) & (points[..., :2] <= 1)).all(-1)
    return points * inside[..., None]


def _put_face(put, look: Look, pose: Pose, motion: Motion) -> None:  # type: ignore[no-untyped-def]
    for k in range(17):
        angle = math.pi * k / 16
        put(FACE + k, pose.on_head(-0.93 * look.head_width * math.cos(angle), 0.13 + 0.87 * math.sin(angle)))
    for k in range(5):
        put(FACE + 17 + k, pose.on_head(-0.54 + 0.075 * k, -0.3))
        put(FACE + 22 + k, pose.on_head(0.24 + 0.075 * k, -0.3))
    for k in range(4):
        put(FACE + 27 + k, pose.on_head(0.0, 0.06 + 0.06 * k))
    for k in range(5):
        put(FACE + 31 + k, pose.on_head(-0.08 + 0.04 * k, 0.28))
    lids = torch.from_numpy(motion.lids)
    for start, side in ((36, -1.0), (42, 1.0)):
        for k in range(6):
            angle = math.pi * (1 + k / 3)
            x = look.eye_gap * side + 0.2 * look.eye_size * math.cos(angle)
            put(FACE + start + k, pose.on_head(x, 0.02 + 0.24 * look.eye_size * lids * math.sin(angle)))
    x, y, half_width, half_height = mouth_geometry(pose, motion)
    for start, count, grow in ((48, 12, 0.065 * pose.unit), (60, 8, 0.0)):
        for k in range(count):
            angle = math.pi * (1 + 2 * k / count)
            dx, dy = (half_width + grow) * math.cos(angle), (half_height + grow) * math.sin(angle)
            cos, sin = pose.tilt.cos(), pose.tilt.sin()
            put(FACE + start + k, (x + cos * dx - sin * dy, y + sin * dx + cos * dy))
