"""Contract of the trained half of a condition, saved with the model (paper section 3.2): audio MLP, pose guider.

Its input is what the frozen half makes (:mod:`omnihuman_core.contracts.extractor`); the cache line lies between them.

Entry-point group: ``omnihuman.condition_encoder.v1``.

Invariants (tests of the same number in ``omnihuman_core.testing.encoder``):

1. ``encode`` of a batch gives, per sample, what it gives for that sample alone.
2. ``null(like)`` has the shapes, dtype and device of ``like`` and does not depend on its values.
3. The null can be told from a real condition.
4. Encoding is deterministic in ``eval`` mode.

Stability: 1.
"""

from __future__ import annotations

from typing import Protocol, TypeVar, runtime_checkable

FeaturesT_contra = TypeVar("FeaturesT_contra", contravariant=True)
ConditionT = TypeVar("ConditionT")


@runtime_checkable
class ConditionEncoder(Protocol[FeaturesT_contra, ConditionT]):
    """Features to a part of :class:`~omnihuman_core.contracts.conditioning.Conditioning`."""

    def encode(self, features: FeaturesT_contra) -> ConditionT:
        """The condition of a batch of features."""
        ...

    def null(self, like: ConditionT) -> ConditionT:
        """The condition that stands for "dropped", in the shapes of ``like``."""
        ...
