"""Conformance kits of feature extractors: of any, of audio and of pose (:mod:`omnihuman_core.contracts.extractor`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnihuman_core.contracts.extractor import NUM_KEYPOINTS, AudioExtractor, FeatureExtractor, PoseExtractor
from omnihuman_core.testing.encoder import map_tensors, tensors
from omnihuman_core.testing.numerics import assert_close
from omnihuman_core.testing.registration import check_registrable


class FeatureExtractorConformance:
    """Subclass it and give the fixtures ``extractor`` and ``raw``; override :meth:`extract` for more arguments."""

    def extract(self, extractor: FeatureExtractor[Any, Any], raw: Any) -> Any:
        """Features of ``raw``."""
        return extractor.extract(raw)

    def test_0_registrable(self, extractor: Any) -> None:
        """The extractor can be rebuilt from its written configuration, and follows the protocol."""
        assert isinstance(extractor, FeatureExtractor)
        check_registrable(extractor)

    def test_1_frozen(self, extractor: FeatureExtractor[Any, Any], raw: Any) -> None:
        """Invariant 1: features carry no gradient, even where gradients are on."""
        with torch.enable_grad():
            features = tensors(self.extract(extractor, raw))
        assert not any(value.requires_grad for value in features.values()), "features must not carry gradients"

    def test_2_deterministic(self, extractor: FeatureExtractor[Any, Any], raw: Any) -> None:
        """Invariant 2: the same input gives the same features, and is left as it was."""
        before = map_tensors(raw, torch.clone)
        first, second = tensors(self.extract(extractor, raw)), tensors(self.extract(extractor, raw))
        for name, value in first.items():
            assert torch.equal(value, second[name]), f"{name} changes from one extraction to the next"
        assert all(torch.equal(value, tensors(before)[name]) for name, value in tensors(raw).items()), (
            "raw input changed"
        )

    def test_3_finite(self, extractor: FeatureExtractor[Any, Any], raw: Any) -> None:
        """Invariant 3: features are finite and there are some."""
        features = tensors(self.extract(extractor, raw))
        assert features, "no tensor among the features"
        for name, value in features.items():
            assert value.numel() > 0, f"{name} is empty"
            assert bool(torch.isfinite(value).all()), f"{name} holds values that are not finite"


class AudioExtractorConformance(FeatureExtractorConformance):
    """Subclass it and give the fixtures ``extractor`` and ``raw``: waveforms ``(B, samples)`` of 0.1 s or more."""

    def test_4_one_state_a_frame(self, extractor: AudioExtractor, raw: Tensor) -> None:
        """Invariant 4: ``(B, T, layers, D)`` for any number of frames, shorter or longer than the sound."""
        assert isinstance(extractor, AudioExtractor), "an audio extractor needs align()"
        features = extractor.extract(raw)
        batch, _, layers, width = features.values.shape
        assert batch == len(raw), f"{len(raw)} waveforms gave {batch} rows of states"
        for fps, frames in ((25.0, 1), (24.0, 7), (30.0, 1000)):
            got = tuple(extractor.align(features, fps=fps, num_frames=frames).shape)
            assert got == (batch, frames, layers, width), f"{frames} frames at {fps} fps were aligned to {got}"

    def test_5_states_at_frame_centres(self, extractor: AudioExtractor, raw: Tensor) -> None:
        """Invariant 5: states that tell their own time give the time of each frame's centre."""
        features = extractor.extract(raw)
        times = features.offset + torch.arange(features.values.shape[1], dtype=torch.float64) / features.rate
        told = replace(features, values=times.to(features.values)[:, None, None].expand_as(features.values).clone())
        for fps in (24.0, 30.0):
            # As many frames again after the last state.
            frames = 2 * (int(float(times[-1]) * fps) + 1)
            centres = (torch.arange(frames, dtype=torch.float64) + 0.5) / fps
            want = centres.clamp(float(times[0]), float(times[-1]))
            got = extractor.align(told, fps=fps, num_frames=frames)[0, :, 0, 0].double()
            assert_close(got.cpu(), want, 0.501 / features.rate, f"times of the states of frames at {fps} fps")


class PoseExtractorConformance(FeatureExtractorConformance):
    """Subclass it and give the fixtures ``extractor``, ``raw``, keypoints ``(T >= 2, 133, 3)``, and ``pose_file``.

    ``pose_file`` is the path of a file that :meth:`load` reads.

    Attributes:
        size: Height and width of the maps.
    """

    size: tuple[int, int] = (48, 64)

    def extract(self, extractor: Any, raw: Any) -> Any:
        """Maps of ``raw``."""
        return extractor.extract(raw, size=self.size)

    def test_4_maps(self, extractor: PoseExtractor, raw: Tensor) -> None:
        """Invariant 4: ``(C, T, H, W)`` in [0, 1], each frame by itself."""
        assert isinstance(extractor, PoseExtractor), "a pose extractor needs load() and extract()"
        for size in (self.size, self.size[::-1]):
            maps = extractor.extract(raw, size=size)
            assert maps.shape[1:] == (len(raw), *size), f"{len(raw)} frames of {size} gave maps {tuple(maps.shape)}"
            low, high = float(maps.min()), float(maps.max())
            assert low >= 0, f"maps lie in [{low:.3g}, {high:.3g}], not in [0, 1]"
            assert high <= 1, f"maps lie in [{low:.3g}, {high:.3g}], not in [0, 1]"
            for i in range(len(raw)):
                alone = extractor.extract(raw[i : i + 1], size=size)
                assert torch.equal(alone[:, 0], maps[:, i]), f"frame {i} alone is drawn in another way"

    def test_5_keypoints_stand_where_they_are_drawn(self, extractor: PoseExtractor) -> None:
        """Invariant 5: a person shrunk to one point is drawn around that point."""
        height, width = self.size
        empty = extractor.extract(_person(0.5, 0.5, score=0.0), size=self.size)
        for x, y in ((0.25, 0.75), (0.75, 0.25)):
            drawn = (extractor.extract(_person(x, y), size=self.size) - empty)[:, 0].abs().amax(0)  # (H, W)
            rows, columns = torch.nonzero(drawn > drawn.max() / 2, as_tuple=True)
            assert drawn.max() > 0, f"a person at ({x}, {y}) is not drawn"
            found = (columns.double().mean() + 0.5) / width, (rows.double().mean() + 0.5) / height
            off = max(abs(found[0] - x), abs(found[1] - y))
            assert off < 0.1, f"a person at ({x}, {y}) is drawn around ({found[0]:.2f}, {found[1]:.2f})"

    def test_6_nobody(self, extractor: PoseExtractor, raw: Tensor) -> None:
        """Invariant 6: where no score is above zero, positions leave no trace."""
        unseen = raw.clone()
        unseen[..., 2] = 0
        first, second = (extractor.extract(value, size=self.size) for value in (unseen, _person(0.5, 0.5, score=0.0)))
        assert torch.equal(first[:, 0], second[:, 0]), "keypoints of score 0 are drawn"

    def test_7_load(self, extractor: PoseExtractor, pose_file: Path) -> None:
        """Invariant 7: keypoints ``(T, 133, 3)``; twice the rate gives twice the frames."""
        once, twice = (extractor.load(pose_file, fps=fps) for fps in (25.0, 50.0))
        assert once.shape[1:] == (NUM_KEYPOINTS, 3), f"the file was loaded as {tuple(once.shape)}"
        assert len(once) > 0, "no frame was loaded"
        assert abs(len(twice) - 2 * len(once)) <= 1, f"{len(once)} frames at 25 fps are {len(twice)} at 50 fps"


def _person(x: float, y: float, score: float = 1.0) -> Tensor:
    """Keypoints ``(1, 133, 3)`` that all stand at one point."""
    return torch.tensor([x, y, score]).expand(1, NUM_KEYPOINTS, 3).clone()
