"""Measures on frames whose truth is drawn."""

import math

import pytest
import torch
from omni_conditions.generation import heldout_clips
from omni_conditions.measures import hand_motion, measure

from omnihuman_train.data.characters.character import LEFT_GLOVE, RIGHT_GLOVE


@pytest.fixture(scope="module")
def clips() -> list:
    return heldout_clips(4)


def test_the_rendered_truth_is_without_fault(clips: list) -> None:
    means, per_clip = measure(torch.stack([clip.video for clip in clips]), clips)
    assert means["lip_sync_r"] > 0.85
    assert abs(means["other_voice_r"]) < 0.5
    assert means["identity_error"] < 0.02
    assert means["hand_motion"] > 0
    assert means["hand_motion_gap"] == 0
    assert means["hands_missing"] < 0.1
    assert means["frechet_frames"] == pytest.approx(0, abs=1e-8)
    assert means["frechet_video"] == pytest.approx(0, abs=1e-8)
    # Faces and half bodies in turn.
    assert [math.isnan(value) for value in per_clip["hand_motion"]] == [True, False, True, False]
    assert len({len(values) for values in per_clip.values()}) == 1


def test_a_still_picture_moves_nothing_and_says_nothing(clips: list) -> None:
    still = torch.stack([clip.video[:, :1].expand_as(clip.video) for clip in clips])
    means, _ = measure(still, clips)
    assert means["lip_sync_r"] == 0
    assert means["hand_motion"] == 0
    assert means["hand_motion_gap"] > 0
    assert means["frechet_frames"] > 0


def test_hand_motion_is_the_deviation_of_the_hands(clips: list) -> None:
    frames, height, width = 20, 40, 60
    picture = torch.full((3, frames, height, width), 0.5)
    places = torch.stack([20 + 8 * torch.sin(torch.arange(frames) * 0.5), torch.full((frames,), 15.0)], 1)
    ys, xs = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    for frame in range(frames):
        for offset, glove in ((0, LEFT_GLOVE), (25, RIGHT_GLOVE)):
            x = places[frame, 0] + offset if offset == 0 else torch.tensor(45.0)
            disc = (xs - x).square() + (ys - places[frame, 1]).square() < 9
            picture[:, frame, disc] = torch.tensor(glove)[:, None]
    motion, missing = hand_motion(picture * 2 - 1, torch.ones(frames, 2, dtype=torch.bool))
    # One of four coordinates moves: variances of x and y, left and right.
    expected = (float((places[:, 0] / 40).var(unbiased=False)) / 4) ** 0.5
    assert motion == pytest.approx(expected, rel=0.05)
    assert missing == 0


def test_hands_that_are_gone_are_missing(clips: list) -> None:
    grey = torch.zeros(3, 5, 32, 32)
    motion, missing = hand_motion(grey, torch.ones(5, 2, dtype=torch.bool))
    assert (motion, missing) == (0.0, 1.0)
    assert all(math.isnan(value) for value in hand_motion(grey, torch.zeros(5, 2, dtype=torch.bool)))
