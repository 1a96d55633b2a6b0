"""Contract of the frozen half of a condition (paper section 3.2): wav2vec states, text ids or states, skeleton maps.

Its result is worth precomputing. What is asked beyond that goes by the kind of condition: an :class:`AudioExtractor`
aligns its states to video frames, a :class:`PoseExtractor` reads pose files. The trained half is
:mod:`omnihuman_core.contracts.encoder`.

Entry-point group: ``omnihuman.feature_extractor.v1``.

Invariants of every extractor (tests of the same number in ``omnihuman_core.testing.extractor``):

1. Features carry no gradient.
2. The same input gives the same features and is left as it was.
3. There are features, and they are finite.

Of an audio extractor, moreover:

4. ``align`` gives one state a video frame, whatever the length of the sound.
5. It is the state at the centre of the frame, ``(i + 0.5) / fps`` seconds, to half a step of the extractor; before the
   first and after the last state it is that one.

Of a pose extractor, moreover:

4. Maps have the size asked for and values in [0, 1]; a frame's map does not depend on the other frames.
5. A keypoint is drawn where it stands: x is a fraction of the width, y of the height.
6. A frame in which nobody is seen is drawn as an empty one.
7. ``load`` gives the frames of a file at the rate asked for.

Stability: 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor

SAMPLE_RATE = 16_000
"""Samples per second (Hz) of the sound that every audio extractor takes."""

NUM_KEYPOINTS = 133
"""Keypoints of a person: COCO-WholeBody."""


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


@runtime_checkable
class FeatureExtractor(Protocol[RawT_contra, FeaturesT_co]):
    """Raw input (waveforms, strings, keypoints) to features."""

    def extract(self, raw: RawT_contra) -> FeaturesT_co:
        """Features of ``raw``; no gradient flows."""
        ...


@runtime_checkable
class AudioExtractor(FeatureExtractor[Tensor, AudioFeatures], Protocol):
    """Waveforms ``(B, samples)`` at :data:`SAMPLE_RATE` to states."""

    def align(self, features: AudioFeatures, *, fps: float, num_frames: int) -> Tensor:
        """States at the centres of the first ``num_frames`` video frames, ``(B, T, layers, D)``."""
        ...


@runtime_checkable
class PoseExtractor(Protocol):
    """Keypoints to pictures of them."""

    def load(self, path: Path, *, fps: float) -> Tensor:
        """Keypoints ``(T, 133, 3)`` of a file at ``fps``: x and y as fractions of width and height, score.

        Raises:
            ValueError: the file holds no poses.
            OSError: it cannot be read.
        """
        ...

    def extract(self, raw: Tensor, *, size: tuple[int, int]) -> Tensor:
        """Maps ``(C, T, H, W)`` in [0, 1] of keypoints ``(T, 133, 3)``, of ``size`` = (H, W) pixels."""
        ...
