"""Captions: a handful of sentence shapes over a small fixed vocabulary, at most 24 words."""

from __future__ import annotations

import numpy as np

from omnihuman_train.data.characters.look import Look

FRAMING_WORDS = {"face": "close-up", "half": "half body", "whole": "full body"}
SPEECH_WORDS = {"speech": "talking", "singing": "singing", "silence": "silent", "noise": "silent"}
PRONOUNS = {"woman": "her", "man": "his", "robot": "its", "cat": "its"}
HAIR_WORDS = {"woman": "hair", "man": "hair", "robot": "antenna", "cat": "ears"}


def gesture_words(gesture: str, side: int, kind: str) -> str:
    """The words for a gesture; `side` 0 is the left hand."""
    if gesture == "waving":
        return f"waving {PRONOUNS[kind]} {('left', 'right')[side]} hand"
    return gesture


def write_caption(
    rng: np.random.Generator,
    looks: list[Look],
    background: str,
    framing: str,
    speech: str,
    gesture: str | None,
    side: int,
) -> str:
    """A caption that names kind, hair, clothes, background, framing, gesture (`None`: hands unseen) and speech."""
    view, voice = FRAMING_WORDS[framing], SPEECH_WORDS[speech]
    if len(looks) == 2:
        first, second = (f"{'an' if x.hair_name[0] in 'aeiou' else 'a'} {x.hair_name} haired {x.kind}" for x in looks)
        acts = [gesture.replace("waving", "waving a hand")] if gesture else []
        who = f"two cartoon characters, {first} and {second} on {_a(background)} background"
        return ", ".join([who, view, *acts, voice])
    look = looks[0]
    who = f"a cartoon {look.kind}"
    has = f"{look.hair_name} {HAIR_WORDS[look.kind]}"
    if look.kind == "robot":
        has = f"a {has}"
    wears = f"{_a(look.clothes_name)} shirt"
    where = f"on {_a(background)} background"
    acts = [gesture_words(gesture, side, look.kind)] if gesture else []
    template = int(rng.integers(4))
    if template == 0:
        return ", ".join([f"{who} with {has} and {wears} {where}", *acts, view, voice])
    if template == 1:
        return ", ".join([f"{view} of {who} with {has} in {wears}", *acts, voice, where])
    if template == 2:
        return ", ".join([f"{who} {where}", has, wears, *acts, voice, view])
    return ", ".join([view, f"{who} in {wears} with {has}", voice, *acts, where])


def _a(colour: str) -> str:
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour}"
