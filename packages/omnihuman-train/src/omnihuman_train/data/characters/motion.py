"""How a character moves: head sway, blinks and gestures, as smooth curves over time.

Curves have one value per frame and one more: the neutral moment of the reference picture, at another pose and sway.
Hand positions are in head units: the origin is the centre of the head, one unit is half a head's height, y points down,
and the character's left hand is on the right of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omnihuman_train.data.characters.phonemes import Array
from omnihuman_train.data.characters.voices import FRAME_RATE

GESTURES = ("arms down", "waving", "raising both hands", "talking with both hands", "moving both hands")
# no gesture takes a hand further from the middle, in head units
HAND_REACH = 1.5
REST = np.array([[0.98, 1.95], [-0.98, 1.95]], np.float32)


@dataclass(frozen=True, kw_only=True)
class Motion:
    """Curves of one character over T frames and the neutral moment.

    Attributes:
        sway: (T + 1, 2) offset of the head, in short sides of the picture.
        tilt: (T + 1,) head tilt in radians.
        lids: (T + 1,) 1 = eyes open, 0 = shut.
        mouth_open, rounding: (T + 1,) in [0, 1].
        hands: (T + 1, 2, 2) left and right hand, x and y in head units.
    """

    sway: Array
    tilt: Array
    lids: Array
    mouth_open: Array
    rounding: Array
    hands: Array


def smooth_curve(rng: np.random.Generator, seconds: Array, low: float, high: float) -> Array:
    """A sum of two sines between `low` and `high` Hz with random phases, within [-1, 1]."""
    total = np.zeros_like(seconds)
    for weight in (0.65, 0.35):
        total += weight * np.sin(2 * np.pi * rng.uniform(low, high) * seconds + rng.uniform(0, 2 * np.pi))
    return total


def _blinks(rng: np.random.Generator, num_frames: int) -> Array:
    lids = np.ones(num_frames + 1, np.float32)
    at = int(rng.integers(0, 50))
    while at < num_frames:
        for offset, value in enumerate((0.6, 0.15, 0.05, 0.35, 0.8)):
            if at + offset < num_frames:
                lids[at + offset] = value
        at += int(rng.integers(30, 80))
    return lids


def gesture_hands(rng: np.random.Generator, gesture: str, side: int, seconds: Array, loudness: Array) -> Array:
    """Hand positions (N, 2, 2) of a gesture; `side` 0 or 1 picks the waving hand, `loudness` (N,) drives talking hands.

    Raises:
        ValueError: unknown gesture.
    """
    hands = np.repeat(REST[None], len(seconds), axis=0)  # (N, 2, 2)
    out = np.array([1.0, -1.0], np.float32)
    if gesture == "arms down":
        hands[:, :, 0] += 0.04 * smooth_curve(rng, seconds, 0.2, 0.5)[:, None]
    elif gesture == "waving":
        swing = np.sin(2 * np.pi * rng.uniform(1.0, 1.7) * seconds + rng.uniform(0, 6))
        hands[:, side, 0] = out[side] * (1.32 + 0.16 * swing)
        hands[:, side, 1] = rng.uniform(-0.1, 0.35) + 0.06 * np.cos(2 * swing)
    elif gesture == "raising both hands":
        height = 0.5 + 0.5 * smooth_curve(rng, seconds, 0.15, 0.35)
        hands[:, :, 0] = out * (1.18 + 0.12 * np.sin(np.pi * height))[:, None]
        hands[:, :, 1] = (1.2 - 1.3 * height)[:, None]
    elif gesture == "talking with both hands":
        beat = np.convolve(np.pad(loudness, 4, mode="edge"), np.hanning(11)[1:-1] / 5, mode="valid")[: len(seconds)]
        drift = smooth_curve(rng, seconds, 0.2, 0.5)
        hands[:, :, 0] = out * (0.72 + 0.4 * beat)[:, None] + 0.08 * drift[:, None]
        hands[:, :, 1] = (1.85 - 0.75 * beat)[:, None] + 0.08 * drift[:, None] * out
    elif gesture == "moving both hands":
        for hand in range(2):
            hands[:, hand, 0] = out[hand] * (1.0 + 0.25 * smooth_curve(rng, seconds, 0.2, 0.7))
            hands[:, hand, 1] = 1.15 + 0.8 * smooth_curve(rng, seconds, 0.2, 0.7)
    else:
        raise ValueError(f"gesture is {gesture!r}; choose one of {GESTURES}")
    return hands.astype(np.float32)


def make_motion(
    rng: np.random.Generator, gesture: str, side: int, mouth_open: Array, rounding: Array, loudness: Array
) -> Motion:
    """Draws the curves of one character; mouth curves have T values and shut at the neutral moment."""
    num_frames = len(mouth_open)
    # the neutral moment lies more than a second after the clip, at another phase of every curve
    seconds = np.append(np.arange(num_frames), num_frames + 40).astype(np.float32) / FRAME_RATE
    sway = np.stack([smooth_curve(rng, seconds, 0.1, 0.45), smooth_curve(rng, seconds, 0.15, 0.6)], axis=1)
    sway = sway * np.array([0.025, 0.014]) * rng.uniform(0.4, 1.0)
    still = np.append(loudness, 0.0).astype(np.float32)
    return Motion(
        sway=sway.astype(np.float32),
        tilt=(0.09 * rng.uniform(0.2, 1.0) * smooth_curve(rng, seconds, 0.1, 0.4)).astype(np.float32),
        lids=_blinks(rng, num_frames),
        mouth_open=np.append(mouth_open, 0.0).astype(np.float32),
        rounding=np.append(rounding, 0.0).astype(np.float32),
        hands=gesture_hands(rng, gesture, side, seconds, still),
    )
