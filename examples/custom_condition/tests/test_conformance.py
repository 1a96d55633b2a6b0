"""All that a condition plugin needs to test: the shipped kits, and what its words mean."""

from __future__ import annotations

import pytest
from mood_condition import MoodEncoder, MoodEncoderConfig, MoodExtractor, MoodExtractorConfig

from omnihuman_core.testing import ConditionEncoderConformance, FeatureExtractorConformance

MOODS = MoodExtractorConfig(moods=("calm", "happy", "angry"))
PROMPTS = ["A happy, calm speaker", "ANGRY!"]


class TestMoodExtractor(FeatureExtractorConformance):
    @pytest.fixture
    def extractor(self):
        return MoodExtractor(MOODS)

    @pytest.fixture
    def raw(self):
        return PROMPTS


class TestMoodEncoder(ConditionEncoderConformance):
    @pytest.fixture
    def encoder(self):
        return MoodEncoder(MoodEncoderConfig(num_moods=3, token_dim=5, pooled_dim=4))

    @pytest.fixture
    def features(self):
        return MoodExtractor(MOODS).extract(PROMPTS)


def test_words_become_ids():
    features = MoodExtractor(MOODS).extract([*PROMPTS, "unhappy", ""])
    assert features.values.tolist() == [[1, 2, 0], [3, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert features.mask.sum(1).tolist() == [2, 1, 1, 1]
