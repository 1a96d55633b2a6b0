"""Captions turned into prompts: parts of them, other words, and never too long or empty."""

import re

import numpy as np
import pytest

from omnihuman_train.data.characters.prompts import FILLERS, SYNONYMS, as_prompt

CAPTION = (
    "a cartoon man with red hair and a purple shirt on a green background, waving his right hand, half body, talking"
)


def prompts(count: int = 400) -> list[str]:
    rng = np.random.default_rng(0)
    return [as_prompt(CAPTION, rng) for _ in range(count)]


def test_same_draws_same_prompt():
    assert prompts(20) == prompts(20)


def test_some_are_short_and_some_are_whole():
    lengths = [len(text.split()) for text in prompts()]
    assert min(lengths) <= 2
    assert max(lengths) >= 20
    assert all(1 <= length <= 24 for length in lengths)


def test_each_part_is_there_and_is_missing():
    texts = prompts()
    for words in ("red hair", "green", "half body", "waving his right hand"):
        share = np.mean([words in text for text in texts])
        assert 0.15 < share < 0.7, words


def test_parts_change_places():
    texts = [text for text in prompts() if "red hair" in text and "half body" in text]
    before = np.mean([text.index("red hair") < text.index("half body") for text in texts])
    assert 0.6 < before < 0.95


def test_words_are_those_of_the_caption_their_synonyms_and_words_that_say_nothing():
    known = set(CAPTION.replace(",", "").split()) | {word for words in SYNONYMS.values() for word in words}
    others = [word for text in prompts() for word in text.split() if word not in known]
    assert any(word in FILLERS for word in others)
    assert any(word not in FILLERS for word in others)
    assert all(word in FILLERS or re.fullmatch("[a-z]{2,9}", word) for word in others)


@pytest.mark.parametrize("word", ["red", "purple", "green", "right", "hair"])
def test_what_a_clip_shows_keeps_its_word(word):
    assert word not in SYNONYMS
    assert word not in FILLERS


def test_words_for_what_a_clip_shows_mean_nothing_else():
    assert not {word for words in SYNONYMS.values() for word in words} & set(CAPTION.split())
