"""Synthetic talking characters: clips drawn and voiced from an integer seed, with truth known to the pixel.

Example:
    >>> clip = make_clip(split_seed("train", 0), num_frames=9, height=32, width=32)
    >>> tuple(clip.video.shape), tuple(clip.waveform.shape)
    ((3, 9, 32, 32), (5760,))
"""

from omnihuman_train.data.characters.dataset import FRAMINGS, CharacterClip, make_clip, split_seed
from omnihuman_train.data.characters.motion import GESTURES
from omnihuman_train.data.characters.voices import FRAME_RATE, SAMPLE_RATE, SPEECH_KINDS

__all__ = [
    "FRAME_RATE",
    "FRAMINGS",
    "GESTURES",
    "SAMPLE_RATE",
    "SPEECH_KINDS",
    "CharacterClip",
    "make_clip",
    "split_seed",
]
