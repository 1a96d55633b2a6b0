"""What is said when: phonemes, each with its sound and its mouth, written onto a 100 Hz control grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

CONTROL_RATE = 100

Array = npt.NDArray[np.floating[Any]]

# vowel -> F1, F2, F3 in Hz, mouth opening, lip rounding
VOWELS: dict[str, tuple[float, float, float, float, float]] = {
    "a": (730, 1090, 2440, 1.00, 0.1),
    "ae": (660, 1720, 2410, 0.85, 0.0),
    "e": (530, 1840, 2480, 0.68, 0.0),
    "o": (570, 840, 2410, 0.68, 0.8),
    "i": (270, 2290, 3010, 0.44, 0.0),
    "u": (300, 870, 2240, 0.38, 1.0),
}
# consonant -> voiced level, noise level, noise centre in Hz, mouth opening
CONSONANTS: dict[str, tuple[float, float, float, float]] = {
    "m": (0.22, 0.0, 1000, 0.0),
    "b": (0.05, 0.0, 1000, 0.0),
    "p": (0.0, 0.0, 1000, 0.0),
    "n": (0.25, 0.0, 1000, 0.18),
    "s": (0.0, 0.35, 5500, 0.12),
    "sh": (0.0, 0.35, 3200, 0.15),
    "t": (0.0, 0.12, 4500, 0.10),
    "k": (0.0, 0.10, 2200, 0.18),
}


class Score:
    """The control grid: one value per 10 ms for every parameter of the synthesis."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.formants = np.tile(np.array([500, 1500, 2500], np.float32), (length, 1))
        self.voiced = np.zeros(length, np.float32)
        self.noise = np.zeros(length, np.float32)
        self.noise_centre = np.full(length, 3000, np.float32)
        self.open = np.zeros(length, np.float32)
        self.round = np.zeros(length, np.float32)
        self.pitch = np.ones(length, np.float32)

    def vowel(self, start: int, stop: int, name: str, loudness: float) -> None:
        """Writes a vowel on grid points [start, stop)."""
        f1, f2, f3, opening, rounding = VOWELS[name]
        part = slice(max(start, 0), stop)
        self.formants[part] = (f1, f2, f3)
        self.voiced[part] = loudness * (0.45 + 0.55 * opening)
        self.open[part] = opening * loudness
        self.round[part] = rounding

    def consonant(self, start: int, stop: int, name: str, loudness: float) -> None:
        """Writes a consonant on grid points [start, stop)."""
        voiced, noise, centre, opening = CONSONANTS[name]
        part = slice(max(start, 0), stop)
        self.voiced[part] = voiced * loudness
        # a stop is silent while closed and bursts at its release
        self.noise[slice(max(stop - 2, 0), stop) if name in "ptk" else part] = noise * loudness
        self.noise_centre[part] = centre
        self.open[part] = opening * loudness


def write_speech(score: Score, rng: np.random.Generator, rate: float) -> None:
    """Fills the score with words of one to four syllables and pauses between them; `rate` is syllables per second."""
    vowels, consonants = list(VOWELS), list(CONSONANTS)
    # "a" and "ae" twice as often: wide open mouths carry most of what is to be learnt
    weights = np.array([2.0, 1.6, 1.0, 1.0, 0.8, 0.8])
    weights /= weights.sum()
    at = int(rng.integers(-20, 25))
    while at < score.length:
        for _ in range(int(rng.integers(1, 5))):
            loudness = float(rng.uniform(0.7, 1.0))
            syllable = int(CONTROL_RATE / rate * rng.uniform(0.8, 1.25))
            closed = min(int(rng.integers(6, 10)), syllable - 10)
            score.pitch[max(at, 0) : max(at + syllable, 0)] = rng.uniform(0.85, 1.2)
            score.consonant(at, max(at + closed, 0), consonants[int(rng.integers(len(consonants)))], loudness)
            vowel = vowels[int(rng.choice(len(vowels), p=weights))]
            score.vowel(at + closed, max(at + syllable, 0), vowel, loudness)
            at += syllable
        at += int(rng.integers(14, 45))


def write_song(score: Score, rng: np.random.Generator) -> None:
    """Fills the score with phrases of long vowels on the notes of a pentatonic scale."""
    scale = 2.0 ** (np.array([-5, -3, 0, 2, 4, 7, 9]) / 12.0)
    vowels, at, step = list(VOWELS)[:5], int(rng.integers(-10, 15)), int(rng.integers(7))
    while at < score.length:
        for _ in range(int(rng.integers(2, 5))):
            note, closed = int(rng.integers(32, 80)), int(rng.integers(7, 11))
            step = int(np.clip(step + rng.integers(-2, 3), 0, 6))
            score.pitch[max(at, 0) : max(at + note, 0)] = scale[step]
            score.consonant(at, max(at + closed, 0), ("m", "n", "b")[int(rng.integers(3))], 1.0)
            vowel = vowels[int(rng.integers(len(vowels)))]
            score.vowel(at + closed, max(at + note, 0), vowel, float(rng.uniform(0.8, 1.0)))
            at += note
        at += int(rng.integers(20, 50))
