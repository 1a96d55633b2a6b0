"""Contracts of the two halves of a condition encoder, split at the cache line (paper section 3.2).

A :class:`FeatureExtractor` is frozen (wav2vec states, text ids or states, skeleton maps): its result is worth
precomputing. A :class:`ConditionEncoder` is trained and saved with the model (audio MLP, pose guider).

Entry-point groups: ``omnihuman.feature_extractor.v1`` and ``omnihuman.condition_encoder.v1``.

Invariants of a condition encoder (tests of the same number in ``omnihuman_core.testing.encoder``):

1. ``encode`` of a batch gives, per sample, what it gives for that sample alone.
2. ``null(like)`` has the shapes, dtype and device of ``like`` and does not depend on its values.
3. The null can be told from a real condition.
4. Encoding is deterministic in ``eval`` mode.

Stability: 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AudioFeatures:
    """States of an audio extractor at its own rate.

    Attributes:
        values: ``(B, n, layers, D)``.
        rate: States per second (Hz).
        offset: Time in seconds of the centre of state 0.
    """

    values: Tensor
    rate: float
    offset: float


@dataclass(frozen=True, kw_only=True)
class TextFeatures:
    """Ids or states of a text extractor.

    Attributes:
        values: ``(B, S, ...)`` ids (integers) or states (floats).
        mask: ``(B, S)`` bool, true where a token counts.
        pooled: ``(B, P)`` or None.
    """

    values: Tensor
    mask: Tensor
    pooled: Tensor | None = None


RawT_contra = TypeVar("RawT_contra", contravariant=True)
FeaturesT_co = TypeVar("FeaturesT_co", covariant=True)
FeaturesT_contra = TypeVar("FeaturesT_contra", contravariant=True)
ConditionT = TypeVar("ConditionT")


@runtime_checkable
class FeatureExtractor(Protocol[RawT_contra, FeaturesT_co]):
    """Frozen front half: raw input (waveform, strings, keypoints) to features."""

    def extract(self, raw: RawT_contra) -> FeaturesT_co:
        """Features of ``raw``; no gradient flows."""
        ...


@runtime_checkable
class ConditionEncoder(Protocol[FeaturesT_contra, ConditionT]):
    """Trainable back half: features to a part of :class:`~omnihuman_core.contracts.conditioning.Conditioning`."""

    def encode(self, features: FeaturesT_contra) -> ConditionT:
        """The condition of a batch of features."""
        ...

    def null(self, like: ConditionT) -> ConditionT:
        """The condition that stands for "dropped", in the shapes of ``like``."""
        ...
