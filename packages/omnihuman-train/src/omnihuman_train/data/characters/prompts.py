"""Captions as users write prompts: parts of them, in another order, in other words, with words that mean nothing here.

A caption names everything that a clip shows. A model that has read only such captions takes "a man talking" for
something it has never seen, and draws that.
"""

from __future__ import annotations

import re

import numpy as np

# Another word for one of the captions'.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "cartoon": ("drawn", "animated", ""),
    "characters": ("people", "figures"),
    "man": ("guy", "boy", "person"),
    "woman": ("lady", "girl", "person"),
    "shirt": ("coat", "jacket", "sweater", "dress"),
    "background": ("wall", "backdrop"),
    "talking": ("talks", "speaking", "speaks"),
    "singing": ("sings",),
    "silent": ("quiet", "still"),
    "close-up": ("portrait", "closeup"),
    "waving": ("waves",),
}
# Words of prompts that a drawn clip says nothing about.
FILLERS = (
    *(
        "happily",
        "calmly",
        "slowly",
        "softly",
        "to",
        "the",
        "camera",
        "about",
        "news",
        "smiling",
        "looking",
        "at",
        "us",
    ),
    *("photo", "video", "of", "realistic", "4k", "cinematic", "studio", "light", "young", "old", "tall", "friendly"),
    *("standing", "sitting", "in", "a", "room", "office", "street", "park", "with", "glasses", "hat", "beard", "and"),
    *("very", "nice", "good", "style", "detailed", "presenter", "teacher", "hands", "face", "music", "story", "hello"),
)
MAX_WORDS = 24  # As captions have.
_PARTS = re.compile(r",\s*|\s+(?=(?:with|in|on|and|of)\s)")


def as_prompt(caption: str, rng: np.random.Generator) -> str:
    """A prompt that somebody might write instead of a caption.

    Some of its parts in any order, each kept with one probability that is drawn from [0, 1]; each word that has another
    one for it may be that one; up to three words are put in that say nothing. At least one word is left.

    Args:
        caption: As :func:`~omnihuman_train.data.characters.captions.write_caption` writes them.
        rng: Draws.
    """
    parts = _PARTS.split(caption)
    share = rng.random()
    kept = [part for part in parts if rng.random() < share] or [parts[int(rng.integers(len(parts)))]]
    if rng.random() < 0.5:
        rng.shuffle(kept)
    words = [_reworded(word, rng) for part in kept for word in part.split()]
    for _ in range(int(rng.integers(4))):
        filler = FILLERS[int(rng.integers(len(FILLERS)))] if rng.random() < 0.7 else _made_up(rng)
        words.insert(int(rng.integers(len(words) + 1)), filler)
    return " ".join([word for word in words if word][:MAX_WORDS]) or caption


def _reworded(word: str, rng: np.random.Generator) -> str:
    others = SYNONYMS.get(word)
    return others[int(rng.integers(len(others)))] if others and rng.random() < 0.4 else word


def _made_up(rng: np.random.Generator) -> str:
    return "".join(chr(ord("a") + int(letter)) for letter in rng.integers(26, size=int(rng.integers(2, 10))))
