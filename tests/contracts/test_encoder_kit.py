"""Each planted fault makes exactly the kit test of its invariant fail."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from omnihuman_core.contracts.conditioning import AudioCondition, TextCondition
from omnihuman_core.contracts.extractor import TextFeatures
from omnihuman_core.testing.encoder import ConditionEncoderConformance
from omnihuman_core.testing.fake_encoders import (
    FakeAudioEncoder,
    FakeAudioEncoderConfig,
    FakePoseEncoder,
    FakePoseEncoderConfig,
    FakeTextEncoder,
    FakeTextEncoderConfig,
    FakeTextExtractor,
    FakeTextExtractorConfig,
)

AUDIO = torch.rand(2, 5, 1, 2, generator=torch.Generator().manual_seed(0))


class TestFakeTextEncoder(ConditionEncoderConformance):
    @pytest.fixture
    def encoder(self) -> FakeTextEncoder:
        return FakeTextEncoder(FakeTextEncoderConfig())

    @pytest.fixture
    def features(self) -> TextFeatures:
        return FakeTextExtractor(FakeTextExtractorConfig()).extract(["a red hat", ""])


class TestFakeAudioEncoder(ConditionEncoderConformance):
    @pytest.fixture
    def encoder(self) -> FakeAudioEncoder:
        return FakeAudioEncoder(FakeAudioEncoderConfig())

    @pytest.fixture
    def features(self) -> Tensor:
        return AUDIO


class TestFakePoseEncoder(ConditionEncoderConformance):
    @pytest.fixture
    def encoder(self) -> FakePoseEncoder:
        return FakePoseEncoder(FakePoseEncoderConfig())

    @pytest.fixture
    def features(self) -> Tensor:
        return torch.rand(2, 3, 5, 4, 6, generator=torch.Generator().manual_seed(0))


class ForgetsItsConfig(FakeAudioEncoder):
    config_class = dict  # type: ignore[assignment]


class MixesSamples(FakeAudioEncoder):
    def encode(self, features: Tensor) -> AudioCondition:
        return super().encode(features - features.mean(0, keepdim=True))


class NullFromValues(FakeAudioEncoder):
    def null(self, like: AudioCondition) -> AudioCondition:
        return AudioCondition(tokens=like.tokens * 0.01)


class NullByMultiplication(FakeAudioEncoder):
    def null(self, like: AudioCondition) -> AudioCondition:
        return AudioCondition(tokens=like.tokens * 0)


class NullOfAnotherDtype(FakeAudioEncoder):
    def null(self, like: AudioCondition) -> AudioCondition:
        return AudioCondition(tokens=super().null(like).tokens.double())


class NullIsSilence(FakeAudioEncoder):
    """Zeros in, null out: silence looks like "dropped"."""

    def __init__(self, config: FakeAudioEncoderConfig) -> None:
        super().__init__(config)
        self.projection.bias.data.fill_(0.5)

    def encode(self, features: Tensor) -> AudioCondition:
        keep = torch.tensor([1.0, 0.0]).view(-1, 1, 1, 1)[: len(features)]
        return super().encode(features * (keep if len(features) > 1 else float(torch.equal(features, AUDIO[:1]))))


class DropsWhileEvaluating(FakeAudioEncoder):
    """Noise too small for the comparison of samples to see, yet not the same twice."""

    def encode(self, features: Tensor) -> AudioCondition:
        tokens = super().encode(features).tokens
        return AudioCondition(tokens=tokens + 1e-6 * torch.rand_like(tokens))


ENCODER_FAULTS = {
    ForgetsItsConfig: "test_0_registrable",
    MixesSamples: "test_1_samples_are_independent",
    NullFromValues: "test_2_null",
    NullByMultiplication: "test_2_null",
    NullOfAnotherDtype: "test_2_null",
    NullIsSilence: "test_3_null_is_told_apart",
    DropsWhileEvaluating: "test_4_deterministic",
}


@pytest.mark.parametrize("fault", ENCODER_FAULTS, ids=lambda fault: fault.__name__)
def test_planted_encoder_fault_is_found(fault, failing):
    encoder = fault(FakeAudioEncoderConfig())
    found = failing(ConditionEncoderConformance(), encoder=encoder, features=AUDIO)
    assert found == {ENCODER_FAULTS[fault]}


class MaskOfTheInput(FakeTextEncoder):
    """A null that keeps the mask of the text it replaces tells how long that was."""

    def null(self, like: TextCondition) -> TextCondition:
        return replace(super().null(like), mask=like.mask)


def test_null_mask_must_not_depend_on_the_text(failing):
    features = FakeTextExtractor(FakeTextExtractorConfig()).extract(["one", "longer"])
    encoder = MaskOfTheInput(FakeTextEncoderConfig())
    assert failing(ConditionEncoderConformance(), encoder=encoder, features=features) == {"test_2_null"}
