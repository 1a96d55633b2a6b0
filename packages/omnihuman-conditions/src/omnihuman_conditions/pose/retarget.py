"""Gives a driver's motion the proportions and the place of another person (our choice; the paper names no method)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from omnihuman_conditions.pose.keypoints import FACE, LEFT_HAND, RIGHT_HAND
from omnihuman_core.contracts.extractor import NUM_KEYPOINTS

# The middle of the shoulders, an extra point behind the others, is the root: portraits rarely show hips.
_ROOT = NUM_KEYPOINTS
_SHOULDERS = (5, 6)

# Bones (parent, point) that share one ratio of lengths: both sides of a body are alike.
_GROUPS: dict[str, Sequence[tuple[int, int]]] = {
    "shoulders": ((_ROOT, 5), (_ROOT, 6)),
    "upper arms": ((5, 7), (6, 8)),
    "forearms": ((7, 9), (8, 10)),
    "neck": ((_ROOT, 0),),
    "head": ((0, 1), (0, 2), (1, 3), (2, 4)),
    "face": tuple((0, point) for point in FACE),
    "torso": ((_ROOT, 11), (_ROOT, 12)),
    "thighs": ((11, 13), (12, 14)),
    "shins": ((13, 15), (14, 16)),
    "feet": ((15, 17), (15, 18), (15, 19), (16, 20), (16, 21), (16, 22)),
    # Each finger is a chain; the root of a hand sits at the wrist.
    "hands": tuple(
        (wrist if joint == 0 else hand[0] if (joint - 1) % 4 == 0 else hand[joint - 1], hand[joint])
        for wrist, hand in ((9, LEFT_HAND), (10, RIGHT_HAND))
        for joint in range(21)
    ),
}
_BONES = {child: (parent, group) for group, bones in _GROUPS.items() for parent, child in bones}
# A bone that points at the camera looks short: ratios further than this from the whole body's are not believed.
_BELIEVED = 2.0
# Of a driver's bone over time, the length that is rarely exceeded is the true one.
_TRUE_LENGTH = 0.9


def retarget(
    driver: Tensor,
    reference: Tensor,
    *,
    driver_aspect: float,
    reference_aspect: float,
    score_threshold: float = 0.3,
) -> Tensor:
    """The driver's motion with the reference person's bone lengths, at the reference person's place.

    Along the kinematic tree every bone keeps the driver's direction and is scaled by the ratio of lengths, reference
    over driver, of its kind of bone; a kind that is hidden in either takes the ratio of the whole body. The middle of
    the shoulders starts where the reference person's is.

    Args:
        driver: Keypoints ``(T, 133, 3)``, x and y as fractions of the driving video's width and height, and score.
        reference: Keypoints ``(133, 3)`` of the reference picture, likewise.
        driver_aspect: Width over height of the driving video.
        reference_aspect: Width over height of the reference picture.
        score_threshold: Points below it count as hidden.

    Returns:
        ``(T, 133, 3)``, as fractions of the reference picture, with the driver's scores.

    Raises:
        ValueError: another shape, an aspect that is not positive, or shoulders hidden in the reference or throughout
            the driving video.
    """
    if driver.ndim != 3 or driver.shape[0] < 1 or tuple(driver.shape[1:]) != (NUM_KEYPOINTS, 3):
        raise ValueError(f"driver keypoints must be (T >= 1, {NUM_KEYPOINTS}, 3), got {tuple(driver.shape)}")
    if tuple(reference.shape) != (NUM_KEYPOINTS, 3):
        raise ValueError(f"reference keypoints must be ({NUM_KEYPOINTS}, 3), got {tuple(reference.shape)}")
    if not (driver_aspect > 0 and reference_aspect > 0):
        raise ValueError(f"aspects must be positive, got {driver_aspect} and {reference_aspect}")
    moving, moving_seen = _square(driver, driver_aspect, score_threshold)
    still, still_seen = _square(reference[None], reference_aspect, score_threshold)
    if not still_seen[0, _ROOT]:
        raise ValueError("reference pose must show both shoulders; choose another picture or leave retargeting out")
    if not moving_seen[:, _ROOT].any():
        raise ValueError("driving video never shows both shoulders; leave retargeting out")
    ratios, whole = _ratios(moving, moving_seen, still, still_seen)

    first = int(moving_seen[:, _ROOT].nonzero()[0])
    # Where nothing better is known, all points move as one.
    placed = still[0, _ROOT] + whole * (moving - moving[first, _ROOT])  # (T, 134, 2)
    for child in _tree_order():
        parent, group = _BONES[child]
        ancestor = parent
        known = moving_seen[:, ancestor]
        anchor, target = moving[:, ancestor], placed[:, ancestor]
        # Past hidden joints, a point hangs on the nearest one above it that is seen.
        while ancestor != _ROOT and not bool(known.all()):
            ancestor = _BONES[ancestor][0]
            use = ~known & moving_seen[:, ancestor]
            anchor = torch.where(use[:, None], moving[:, ancestor], anchor)
            target = torch.where(use[:, None], placed[:, ancestor], target)
            known = known | use
        hung = target + ratios[group] * (moving[:, child] - anchor)
        placed[:, child] = torch.where(known[:, None], hung, placed[:, child])
    xy = placed[:, :NUM_KEYPOINTS] / torch.tensor([reference_aspect, 1.0], dtype=placed.dtype)
    return torch.cat([xy.to(driver.dtype), driver[..., 2:]], dim=-1)  # (T, 133, 3)


def _square(keypoints: Tensor, aspect: float, threshold: float) -> tuple[Tensor, Tensor]:
    """Points in units of the picture's height, with the root as point 133, and which of them are seen."""
    xy = keypoints[..., :2].double() * torch.tensor([aspect, 1.0], dtype=torch.float64)
    seen = keypoints[..., 2] >= threshold
    root = xy[:, _SHOULDERS].mean(1, keepdim=True)
    return torch.cat([xy, root], 1), torch.cat([seen, seen[:, _SHOULDERS].all(1, keepdim=True)], 1)


def _ratios(moving: Tensor, moving_seen: Tensor, still: Tensor, still_seen: Tensor) -> tuple[dict[str, float], float]:
    """Reference over driver length of each kind of bone, and of the whole body."""
    sums: dict[str, tuple[float, float]] = {}
    for group, bones in _GROUPS.items():
        reference = driver = 0.0
        for parent, child in bones:
            together = moving_seen[:, parent] & moving_seen[:, child]
            if bool(together.any()) and bool(still_seen[0, parent] & still_seen[0, child]):
                lengths = (moving[together, child] - moving[together, parent]).norm(dim=-1)
                driver += float(lengths.quantile(_TRUE_LENGTH))
                reference += float((still[0, child] - still[0, parent]).norm())
        if driver > 0 and reference > 0:
            sums[group] = reference, driver
    body = [sums[group] for group in sums if group not in ("face", "hands", "feet")]
    if not body:
        raise ValueError("reference pose and driving video share no bone of any length; leave retargeting out")
    whole = sum(reference for reference, _ in body) / sum(driver for _, driver in body)
    ratios = {group: reference / driver for group, (reference, driver) in sums.items()}
    believed = {group: min(max(ratio, whole / _BELIEVED), whole * _BELIEVED) for group, ratio in ratios.items()}
    return {group: believed.get(group, whole) for group in _GROUPS}, whole


def _tree_order() -> list[int]:
    """Points with every parent before its children."""
    order: list[int] = []
    while len(order) < NUM_KEYPOINTS:
        order += [child for child, (parent, _) in _BONES.items() if child not in order and parent in (*order, _ROOT)]
    return order
