"""Each planted fault makes exactly the kit test of its invariant fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from omnihuman_core.contracts.extractor import AudioFeatures
from omnihuman_core.testing import AudioExtractorConformance, FeatureExtractorConformance, PoseExtractorConformance
from omnihuman_core.testing.fake_encoders import (
    FakeAudioExtractor,
    FakeAudioExtractorConfig,
    FakePoseExtractor,
    FakePoseExtractorConfig,
    FakeTextExtractor,
    FakeTextExtractorConfig,
)

WAVEFORM = torch.rand(2, 4000, generator=torch.Generator().manual_seed(1)) * 2 - 1
KEYPOINTS = torch.rand(2, 133, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pose_file(tmp_path: Path) -> Path:
    path = tmp_path / "pose.safetensors"
    save_file({"keypoints": KEYPOINTS.repeat(10, 1, 1), "fps": torch.tensor(25.0)}, path)
    return path


class TestFakeTextExtractor(FeatureExtractorConformance):
    @pytest.fixture
    def extractor(self) -> FakeTextExtractor:
        return FakeTextExtractor(FakeTextExtractorConfig())

    @pytest.fixture
    def raw(self) -> list[str]:
        return ["a red hat", ""]


class TestFakeAudioExtractor(AudioExtractorConformance):
    @pytest.fixture
    def extractor(self) -> FakeAudioExtractor:
        return FakeAudioExtractor(FakeAudioExtractorConfig())

    @pytest.fixture
    def raw(self) -> Tensor:
        return WAVEFORM


class TestFakePoseExtractor(PoseExtractorConformance):
    @pytest.fixture
    def extractor(self) -> FakePoseExtractor:
        return FakePoseExtractor(FakePoseExtractorConfig())

    @pytest.fixture
    def raw(self) -> Tensor:
        return KEYPOINTS


class Trainable(FakeAudioExtractor):
    def extract(self, raw: Tensor) -> AudioFeatures:
        features = super().extract(raw)
        return replace(features, values=features.values * torch.ones((), requires_grad=True))


class Dithers(FakeAudioExtractor):
    def extract(self, raw: Tensor) -> AudioFeatures:
        return super().extract(raw + 1e-3 * torch.randn_like(raw))


class ScalesInPlace(FakeAudioExtractor):
    def extract(self, raw: Tensor) -> AudioFeatures:
        features = super().extract(raw)
        raw.mul_(0.5)
        return features


class LogOfZero(FakeAudioExtractor):
    def extract(self, raw: Tensor) -> AudioFeatures:
        features = super().extract(raw)
        return replace(features, values=(features.values * 0).log())


class EndsWithTheSound(FakeAudioExtractor):
    """As many states as there are, where a video outlasts its sound."""

    def align(self, features: AudioFeatures, *, fps: float, num_frames: int, first_frame: int = 0) -> Tensor:
        heard = int(features.values.shape[1] / features.rate * fps)
        return super().align(features, fps=fps, num_frames=min(num_frames, heard), first_frame=first_frame)


class StartsOfFrames(FakeAudioExtractor):
    """The start of a frame in place of its centre: half a frame early."""

    def align(self, features: AudioFeatures, *, fps: float, num_frames: int, first_frame: int = 0) -> Tensor:
        late = replace(features, offset=features.offset + 0.5 / fps)
        return super().align(late, fps=fps, num_frames=num_frames, first_frame=first_frame)


class ForgetsTheOffset(FakeAudioExtractor):
    def align(self, features: AudioFeatures, *, fps: float, num_frames: int, first_frame: int = 0) -> Tensor:
        return super().align(replace(features, offset=0.0), fps=fps, num_frames=num_frames, first_frame=first_frame)


class RepeatsTheSound(FakeAudioExtractor):
    """From the start again after the end."""

    def align(self, features: AudioFeatures, *, fps: float, num_frames: int, first_frame: int = 0) -> Tensor:
        times = (torch.arange(first_frame, first_frame + num_frames) + 0.5) / fps
        index = ((times - features.offset) * features.rate).round().long().clamp(min=0)
        return features.values[:, index % features.values.shape[1]]


AUDIO_FAULTS = {
    Trainable: {"test_1_frozen"},
    Dithers: {"test_2_deterministic"},
    ScalesInPlace: {"test_2_deterministic"},
    LogOfZero: {"test_3_finite"},
    # What has no states there cannot tell their time either.
    EndsWithTheSound: {"test_4_one_state_a_frame", "test_5_states_at_frame_centres"},
    StartsOfFrames: {"test_5_states_at_frame_centres"},
    ForgetsTheOffset: {"test_5_states_at_frame_centres"},
    RepeatsTheSound: {"test_5_states_at_frame_centres"},
}


@pytest.mark.parametrize("fault", AUDIO_FAULTS, ids=lambda fault: fault.__name__)
def test_planted_audio_fault_is_found(fault, failing):
    # Coarse states: a mistake of half a frame is more than half a step of a fine one.
    rate = 100 if fault is not ForgetsTheOffset else 20
    extractor = fault(FakeAudioExtractorConfig(rate=rate))
    assert failing(AudioExtractorConformance(), extractor=extractor, raw=WAVEFORM.clone()) == AUDIO_FAULTS[fault]


class Overexposed(FakePoseExtractor):
    def extract(self, raw: Tensor, *, size: tuple[int, int] = (8, 8)) -> Tensor:
        return 255 * super().extract(raw, size=size)


class Transposed(FakePoseExtractor):
    """Maps of width x height."""

    def extract(self, raw: Tensor, *, size: tuple[int, int] = (8, 8)) -> Tensor:
        return super().extract(raw, size=size).transpose(-1, -2)


class Trails(FakePoseExtractor):
    """Every frame over the ones before."""

    def extract(self, raw: Tensor, *, size: tuple[int, int] = (8, 8)) -> Tensor:
        return super().extract(raw, size=size).cummax(1).values


class SwapsAxes(FakePoseExtractor):
    """Takes x for y."""

    def extract(self, raw: Tensor, *, size: tuple[int, int] = (8, 8)) -> Tensor:
        return super().extract(raw[..., [1, 0, 2]], size=size)


class InPixels(FakePoseExtractor):
    """Takes fractions for pixels."""

    def extract(self, raw: Tensor, *, size: tuple[int, int] = (8, 8)) -> Tensor:
        scale = torch.tensor([1 / size[1], 1 / size[0], 1.0])
        return super().extract(raw * scale, size=size)


class DrawsTheUnseen(FakePoseExtractor):
    def extract(self, raw: Tensor, *, size: tuple[int, int] = (8, 8)) -> Tensor:
        drawn = super().extract(raw, size=size)
        unseen = super().extract(torch.cat([raw[..., :2], 1 - raw[..., 2:]], dim=-1), size=size)
        return torch.maximum(drawn, 0.25 * unseen)


class KeepsTheRate(FakePoseExtractor):
    """The frames of the file, whatever rate is asked for."""

    def load(self, path: Path, *, fps: float) -> Tensor:
        return super().load(path, fps=25.0)


POSE_FAULTS = {
    Overexposed: {"test_4_maps"},
    Transposed: {"test_4_maps", "test_5_keypoints_stand_where_they_are_drawn"},
    Trails: {"test_4_maps"},
    SwapsAxes: {"test_5_keypoints_stand_where_they_are_drawn"},
    InPixels: {"test_5_keypoints_stand_where_they_are_drawn"},
    DrawsTheUnseen: {"test_6_nobody"},
    KeepsTheRate: {"test_7_load"},
}


@pytest.mark.parametrize("fault", POSE_FAULTS, ids=lambda fault: fault.__name__)
def test_planted_pose_fault_is_found(fault, failing, pose_file):
    extractor = fault(FakePoseExtractorConfig())
    found = failing(PoseExtractorConformance(), extractor=extractor, raw=KEYPOINTS.clone(), pose_file=pose_file)
    assert found == POSE_FAULTS[fault]
