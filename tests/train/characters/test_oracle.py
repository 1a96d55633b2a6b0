"""Measures on rendered truth, where the right answer is known, and on planted faults, which they must see."""

import functools
import math

import pytest
import torch
from torch.nn import functional

from omnihuman_train.data.characters import FRAMINGS, CharacterClip, make_clip
from omnihuman_train.data.characters.oracle import (
    background_drift,
    colour_error,
    hand_error,
    lip_sync,
    mouth_opening,
    region_colours,
)

NUM_CLIPS = 21


@functools.cache
def talking(seed: int) -> CharacterClip:
    return make_clip(seed, framing=FRAMINGS[seed % 3], speech="speech", fail_rate=0, persons=1 + (seed % 7 == 0))


def blurred(video: torch.Tensor) -> torch.Tensor:
    kernel = torch.tensor([1.0, 2.0, 1.0]) / 4
    weight = (kernel[:, None] * kernel)[None, None].repeat(3, 1, 1, 1)
    padded = functional.pad(video.transpose(0, 1), (1, 1, 1, 1), mode="replicate")
    return functional.conv2d(padded, weight, groups=3).transpose(0, 1)


@pytest.mark.parametrize("soften", [False, True])
def test_lip_sync_of_rendered_truth_and_of_another_voice(soften: bool) -> None:
    shuffled = []
    for seed in range(NUM_CLIPS):
        clip = talking(seed)
        opening = mouth_opening(blurred(clip.video) if soften else clip.video, clip.mouth_box)
        assert opening.shape == clip.mouth_box.shape[:2]
        for person in opening.unbind(1):
            sync = lip_sync(person, clip.mouth_open)
            assert sync.correlation >= 0.95
            assert sync.best_lag == 0
            slope = float(person @ clip.mouth_open / clip.mouth_open.square().sum())
            assert slope == pytest.approx(1.0, abs=0.3 if soften else 0.15)
            shuffled.append(lip_sync(person, talking((seed + 1) % NUM_CLIPS).mouth_open).correlation)
    assert abs(sum(shuffled) / len(shuffled)) < 0.15


def test_late_frames_have_a_positive_lag() -> None:
    truth = talking(1).mouth_open
    late = lip_sync(torch.cat([truth[:3], truth[:-3]]), truth)
    assert late.best_lag == 3
    assert late.best_correlation == pytest.approx(1.0)
    assert late.correlation < 0.9


def test_frozen_frames_have_no_lip_sync() -> None:
    clip = talking(2)
    frozen = clip.reference[:, None].expand_as(clip.video)
    opening = mouth_opening(frozen, clip.mouth_box)[:, 0]
    assert opening.max() < 0.05
    assert lip_sync(opening, clip.mouth_open).correlation == 0


@pytest.mark.parametrize("speech", ["silence", "noise"])
def test_mouths_stay_shut_without_a_voice(speech: str) -> None:
    for seed in range(12):
        clip = make_clip(seed, num_frames=9, speech=speech)
        assert mouth_opening(clip.video, clip.mouth_box).max() < 0.05


def test_hands_of_rendered_truth_are_found_and_moved_hands_are_seen() -> None:
    for seed in (s for s in range(NUM_CLIPS) if s % 3):
        clip = talking(seed)
        error = hand_error(clip.video, clip.hands)
        assert error.distance <= 0.015
        assert error.missing <= 0.02
    moved = clip.hands + torch.tensor([0.1, 0.0, 0.0])
    assert hand_error(clip.video, moved).distance == pytest.approx(0.1, abs=0.01)
    swapped = clip.hands.flip(2)
    assert hand_error(clip.video, swapped).distance > 0.2


def test_hands_that_are_not_drawn_are_missing() -> None:
    clip = make_clip(8, framing="face", persons=1)
    empty = hand_error(clip.video, clip.hands)
    assert math.isnan(empty.distance)
    assert empty.missing == 0
    wanted = torch.tensor([0.5, 0.9, 1.0]).expand_as(clip.hands)
    assert hand_error(clip.video, wanted).missing == 1


def test_colours_of_rendered_truth_and_of_a_tinted_copy() -> None:
    for seed in range(NUM_CLIPS):
        clip = talking(seed)
        errors = colour_error(clip.video, clip.attributes)
        assert set(errors) == {"background", "skin", "hair", "clothes", "mean"}
        assert max(errors.values()) < 0.04
        for name, colour in region_colours(clip.reference, clip.attributes).items():
            read = region_colours(clip.video, clip.attributes)[name]
            assert colour == pytest.approx(read, abs=0.06)
    assert colour_error(clip.video * 0.5, clip.attributes)["mean"] > 0.1


def test_still_backgrounds_do_not_drift_and_moving_ones_do() -> None:
    still = next(c for c in map(talking, range(NUM_CLIPS)) if not c.attributes["camera_pan"])
    assert background_drift(still.video, still.attributes) < 1e-6
    frames = still.video.shape[1]
    # The first and the last second of this ramp lie so far apart, in a range of [0, 1].
    brighter = still.video + torch.linspace(0, 0.2, frames)[None, :, None, None]
    apart = 0.1 * (frames - 25) / (frames - 1)
    assert background_drift(brighter, still.attributes) == pytest.approx(apart, abs=0.005)
    red = torch.zeros(3)[:, None, None, None].expand_as(still.video).clone()
    red[0, -25:] = 0.3
    assert background_drift(still.video + red, still.attributes) == pytest.approx(0.15, abs=0.005)


def test_bad_input_is_named() -> None:
    clip = talking(1)
    with pytest.raises(ValueError, match="mouth_box"):
        mouth_opening(clip.video, clip.mouth_box[:-1])
    with pytest.raises(ValueError, match="hands"):
        hand_error(clip.video, clip.hands[..., :2])
    with pytest.raises(ValueError, match="frames"):
        mouth_opening(clip.reference, clip.mouth_box)
    with pytest.raises(ValueError, match="one length"):
        lip_sync(clip.mouth_open[:-1], clip.mouth_open)
