"""Dropping conditions per sample in training: the two principles of omni-conditions training (paper section 3.3).

Principle 1: data that fails the filter of a stronger condition still trains the weaker ones, so a sample is *eligible*
for some conditions only. Principle 2: the stronger a condition, the lower its keep ratio.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from omnihuman_core.contracts.conditioning import Conditioning, MotionCondition, ReferenceCondition

LatentsT = TypeVar("LatentsT", ReferenceCondition, MotionCondition)


def draw_keep(
    batch: int,
    ratios: Mapping[str, float],
    eligible: Mapping[str, Tensor],
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Which conditions each sample keeps, drawn independently per sample and per condition.

    Args:
        batch: Samples ``B``.
        ratios: Keep probability in [0, 1] by condition name (paper: text 0.9, audio 0.5, pose 0.25).
        eligible: ``(B,)`` bool by condition name, false where the sample's data does not pass the condition's filter;
            a condition that is not named is eligible everywhere.
        generator: Source of randomness; its device is the device of the result.

    Returns:
        ``(B,)`` bool by condition name, the names of ``ratios``.

    Raises:
        ValueError: a ratio outside [0, 1], an unknown name in ``eligible``, or a wrong shape.
    """
    unknown = set(eligible) - set(ratios)
    if unknown:
        raise ValueError(f"eligible names conditions without a ratio: {sorted(unknown)}")
    device = generator.device if generator is not None else torch.device("cpu")
    keep: dict[str, Tensor] = {}
    # Sorted, so that one seed gives one draw whatever the order of the mapping.
    for name in sorted(ratios):
        if not 0.0 <= ratios[name] <= 1.0:
            raise ValueError(f"keep ratio of {name} must be in [0, 1], got {ratios[name]}")
        keep[name] = torch.rand(batch, generator=generator, device=device) < ratios[name]
        if name in eligible:
            if eligible[name].shape != (batch,):
                raise ValueError(f"eligible[{name!r}] must have shape ({batch},), got {tuple(eligible[name].shape)}")
            keep[name] &= eligible[name].to(device=device, dtype=torch.bool)
    return keep


def drop(conditioning: Conditioning, nulls: Conditioning, keep: Mapping[str, Tensor]) -> Conditioning:
    """Replace the conditions that a sample does not keep by their nulls.

    Args:
        conditioning: Conditions of a batch.
        nulls: The null of every condition that may be dropped, from its encoder, in the same shapes.
        keep: ``(B,)`` bool by condition name; parts that are not named stay as they are.

    Returns:
        The conditioning with nulls in place of dropped parts; absent parts stay absent.

    Raises:
        ValueError: a part to drop has no null.
    """
    changed: dict[str, Any] = {}
    for name, part in conditioning.parts().items():
        if name not in keep:
            continue
        null = getattr(nulls, name)
        if null is None:
            raise ValueError(f"no null given for the condition {name!r}, which may be dropped")
        changed[name] = part.where(keep[name].to(_device(part)), null)
    return replace(conditioning, **changed)


def null_latents(like: LatentsT) -> LatentsT:
    """The null of a reference or a motion condition, which have no encoder: latents at their mean, zero.

    The paper does not say what stands for a dropped reference; zero is our choice. Final latents are normalised, so
    zero is a featureless picture to the backbone.
    """
    return like.map(torch.zeros_like)


def _device(part: object) -> torch.device:
    return next(value.device for value in vars(part).values() if isinstance(value, Tensor))
