"""Keypoints of a drawn character in the order of COCO-WholeBody (Jin et al. 2020, arXiv 2007.11858): 133 points.

17 of the body, 6 of the feet, 68 of the face, 21 of the left hand, 21 of the right. "Left" is the character's own left,
the right of the picture.
"""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor

from omnihuman_core.contracts import NUM_KEYPOINTS
from omnihuman_train.data.characters.character import (
    GLOVE_RADIUS,
    LIP_SIZE,
    MOUTH_HALF_HEIGHT,
    MOUTH_HALF_WIDTH,
    MOUTH_TOP,
    ROUNDING,
    Pose,
)
from omnihuman_train.data.characters.look import Look
from omnihuman_train.data.characters.motion import Motion

FEET, FACE, LEFT_HAND, RIGHT_HAND = 17, 23, 91, 112

# one hand: the root, then five fingers of four joints fanned out over the upper half of the glove, in glove radii
_SPOKES = pi * (0.15 + 0.175 * torch.arange(5).repeat_interleave(4))
_RINGS = 0.22 * torch.arange(1, 5).repeat(5)
_HAND = torch.cat([torch.zeros(1, 2), torch.stack([_RINGS * _SPOKES.cos(), -_RINGS * _SPOKES.sin()], dim=-1)])


def keypoints_of(look: Look, pose: Pose, motion: Motion, *, arms: bool, legs: bool, height: int, width: int) -> Tensor:
    """Keypoints (N, 133, 3): x, y in widths and heights of the picture, score 1 where drawn and inside it, 0 else."""
    points = torch.zeros(pose.head.shape[0], NUM_KEYPOINTS, 3)
    points[:, 0, :2] = pose.turn(torch.tensor([[0.0, 0.24]]))[:, 0]
    eye, ear = look.eye_gap, 0.95 * look.head_width
    points[:, 1:5, :2] = pose.turn(torch.tensor([(eye, 0.02), (-eye, 0.02), (ear, 0.2), (-ear, 0.2)]))
    body = torch.tensor([(0.52, 1.2), (0.27, 2.15), (0.29, 2.75), (0.3, 3.35), (0.5, 3.6), (0.62, 3.55), (0.25, 3.6)])
    for hand, side in enumerate((1.0, -1.0)):
        joints = pose.body[:, None] + pose.unit * body * torch.tensor([side, 1.0])  # (N, 7, 2)
        points[:, 5 + hand, :2] = joints[:, 0]
        if arms:
            points[:, 7 + hand, :2], points[:, 9 + hand, :2] = pose.elbows[:, hand], pose.hands[:, hand]
            fingers = pose.unit * GLOVE_RADIUS * _HAND * torch.tensor([side, 1.0])
            start = (LEFT_HAND, RIGHT_HAND)[hand]
            points[:, start : start + 21, :2] = pose.hands[:, hand, None] + fingers
        if legs:
            points[:, 11 + hand : 17 : 2, :2] = joints[:, 1:4]
            points[:, FEET + 3 * hand : FEET + 3 * hand + 3, :2] = joints[:, 4:]
    points[:, FACE : FACE + 68, :2] = pose.turn(_face(look, motion))
    drawn = torch.zeros(NUM_KEYPOINTS)
    drawn[:7] = drawn[FACE:LEFT_HAND] = 1.0
    if arms:
        drawn[7:11] = drawn[LEFT_HAND:] = 1.0
    if legs:
        drawn[11:FACE] = 1.0
    points[..., :2] /= torch.tensor([width, height])
    inside = ((points[..., :2] >= 0) & (points[..., :2] <= 1)).all(-1)
    points[..., 2] = inside * drawn
    return points * points[..., 2:]


def _face(look: Look, motion: Motion) -> Tensor:
    """The 68 face points in head units, (N, 68, 2): jaw, brows, nose, eyes, mouth."""
    lids, opening, rounding = (torch.from_numpy(x) for x in (motion.lids, motion.mouth_open, motion.rounding))
    face = torch.zeros(len(lids), 68, 2)
    jaw = pi * torch.arange(17) / 16
    face[:, :17] = torch.stack([-0.93 * look.head_width * jaw.cos(), 0.13 + 0.87 * jaw.sin()], dim=-1)
    brow = torch.arange(5) * 0.075
    face[:, 17:27, 0], face[:, 17:27, 1] = torch.cat([brow - 0.54, brow + 0.24]), -0.3
    face[:, 27:31, 1] = 0.06 + 0.06 * torch.arange(4)
    face[:, 31:36, 0], face[:, 31:36, 1] = 0.04 * torch.arange(-2, 3), 0.28
    eye = pi * (1 + torch.arange(6) / 3)
    for start, side in ((36, -1), (42, 1)):
        face[:, start : start + 6, 0] = look.eye_gap * side + 0.2 * look.eye_size * eye.cos()
        face[:, start : start + 6, 1] = 0.02 + 0.24 * look.eye_size * lids[:, None] * eye.sin()
    half_height = MOUTH_HALF_HEIGHT * opening[:, None]
    half_width = MOUTH_HALF_WIDTH * (1 - ROUNDING * rounding[:, None])
    for start, count, grow in ((48, 12, LIP_SIZE), (60, 8, 0.0)):
        lip = pi * (1 + 2 * torch.arange(count) / count)
        face[:, start : start + count, 0] = (half_width + grow) * lip.cos()
        face[:, start : start + count, 1] = MOUTH_TOP + half_height + (half_height + grow) * lip.sin()
    return face
