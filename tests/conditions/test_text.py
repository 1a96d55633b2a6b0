"""Byte text: what a word becomes, and that the encoder keeps order, letters and masks apart."""

import pytest
import torch

from omnihuman_conditions.text import (
    ByteTextEncoder,
    ByteTextEncoderConfig,
    ByteTextExtractor,
    ByteTextExtractorConfig,
)
from omnihuman_core.contracts.extractor import TextFeatures

EXTRACTOR = ByteTextExtractor(ByteTextExtractorConfig(max_words=4, max_bytes=6))
CONFIG = ByteTextEncoderConfig(max_words=4, max_bytes=6, hidden_dim=12, token_dim=8, pooled_dim=10)


def encoder() -> ByteTextEncoder:
    torch.manual_seed(0)
    return ByteTextEncoder(CONFIG).eval()


def words(features: TextFeatures, row: int = 0) -> list[str]:
    return [bytes((ids[ids > 0] - 1).tolist()).decode() for ids in features.values[row][features.mask[row]]]


def test_words_are_lower_case_without_punctuation() -> None:
    features = EXTRACTOR.extract(['  A "Red",\n coat!! ... it\'s'])
    assert words(features) == ["a", "red", "coat", "it's"]
    assert features.values.shape == (1, 4, 6)
    assert features.mask.tolist() == [[True] * 4]


def test_empty_text_is_one_word_without_bytes() -> None:
    for text in ("", "  ", "?!"):
        features = EXTRACTOR.extract([text])
        assert features.mask.tolist() == [[True, False, False, False]]
        assert features.values.sum() == 0


def test_other_scripts_are_bytes() -> None:
    assert words(EXTRACTOR.extract(["Élan 声"])) == ["élan", "声"]
    assert EXTRACTOR.extract(["\ud800"]).mask.sum() == 1


def test_long_words_are_cut_and_long_texts_warn() -> None:
    assert words(EXTRACTOR.extract(["whiteboard"])) == ["whiteb"]
    with pytest.warns(UserWarning, match="5 words, only the first 4"):
        features = EXTRACTOR.extract(["one two three four five"])
    assert words(features) == ["one", "two", "three", "four"]


def test_refusals() -> None:
    for wrong in ("a bare string", []):
        with pytest.raises(ValueError, match="list of at least one string"):
            EXTRACTOR.extract(wrong)
    with pytest.raises(ValueError, match=r"\(B, S <= 4, W <= 6\)"):
        encoder().encode(TextFeatures(values=torch.zeros(1, 5, 6, dtype=torch.int64), mask=torch.ones(1, 5).bool()))
    with pytest.raises(ValueError, match="max_words"):
        ByteTextExtractorConfig(max_words=0, max_bytes=1)
    with pytest.raises(ValueError, match="ByteTextEncoderConfig.pooled_dim"):
        ByteTextEncoderConfig(**{**CONFIG.__dict__, "pooled_dim": 0})


def test_anagrams_and_word_order_differ() -> None:
    tokens = encoder().encode(EXTRACTOR.extract(["red der", "der red"])).tokens
    assert not torch.allclose(tokens[0, 0], tokens[1, 0], atol=1e-3)
    assert not torch.allclose(tokens[0, 0], tokens[1, 1], atol=1e-3)


def test_a_word_does_not_depend_on_its_neighbours_or_on_padding() -> None:
    model = encoder()
    tokens = model.encode(EXTRACTOR.extract(["red coat", "red hat now"])).tokens
    torch.testing.assert_close(tokens[0, 0], tokens[1, 0])
    wide = ByteTextExtractor(ByteTextExtractorConfig(max_words=3, max_bytes=5)).extract(["red coat"])
    short = model.encode(wide)
    torch.testing.assert_close(short.tokens[0, :2], tokens[0, :2])


def test_pooled_is_blind_to_masked_words() -> None:
    model = encoder()
    features = EXTRACTOR.extract(["red coat"])
    spoiled = TextFeatures(values=features.values.clone().index_fill_(1, torch.tensor([3]), 5), mask=features.mask)
    torch.testing.assert_close(model.encode(spoiled).pooled, model.encode(features).pooled)


def test_the_empty_text_is_the_null() -> None:
    model = encoder()
    condition = model.encode(EXTRACTOR.extract(["", "a coat"]))
    null = model.null(condition)
    assert torch.equal(null.mask, EXTRACTOR.extract(["", ""]).mask)
    assert condition.pooled is not None
    assert null.pooled is not None
    torch.testing.assert_close(condition.tokens[0, 0], null.tokens[0, 0])
    torch.testing.assert_close(condition.pooled[0], null.pooled[0])
    mixed = condition.where(torch.tensor([True, False]), null)
    assert mixed.mask.tolist() == [[True, False, False, False]] * 2
