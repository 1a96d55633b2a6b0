"""Clips: shapes, determinism, splits, captions, keypoints and what happens when a filter fails."""

import pytest
import torch
from torch.nn import functional

from omnihuman_train.data.characters import FRAMINGS, GESTURES, CharacterClip, make_clip, split_seed
from omnihuman_train.data.characters.captions import FRAMING_WORDS, SPEECH_WORDS
from omnihuman_train.data.characters.dataset import voice_family

SIZES = {"face": (64, 64), "half": (48, 80), "whole": (80, 48)}


def draw(seed: int, **options: object) -> CharacterClip:
    return make_clip(seed, **{"num_frames": 9, "height": 48, "width": 48, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("persons", [1, 2])
def test_shapes_and_ranges(framing: str, persons: int) -> None:
    height, width = SIZES[framing]
    clip = make_clip(3, num_frames=13, height=height, width=width, framing=framing, persons=persons, fail_rate=0)
    assert clip.video.shape == (3, 13, height, width)
    assert clip.reference.shape == (3, height, width)
    assert clip.waveform.shape == (13 * 640,)
    assert clip.keypoints.shape == (13, 133, 3)
    assert clip.mouth_open.shape == (13,)
    assert clip.mouth_box.shape == (13, persons, 4)
    assert clip.hands.shape == (13, persons, 2, 3)
    assert {t.dtype for t in (clip.video, clip.reference, clip.waveform, clip.mouth_open)} == {torch.float32}
    assert clip.video.abs().max() <= 1
    assert clip.mouth_box.min() >= 0
    assert clip.mouth_box.max() <= 1
    assert (clip.mouth_box[..., 2:] > clip.mouth_box[..., :2]).all()
    assert clip.has_pose == (framing != "face")
    assert clip.hands[..., 2].unique().tolist() == [float(framing != "face")]


def test_same_seed_same_clip_and_other_seed_other_clip() -> None:
    first, again, other = draw(5), draw(5), draw(6)
    for name in ("video", "reference", "waveform", "keypoints", "mouth_open", "mouth_box", "hands"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert first.caption == again.caption
    assert first.attributes == again.attributes
    assert not torch.equal(first.video, other.video)
    assert not torch.equal(first.waveform, other.waveform)


def test_splits_never_share_a_seed_and_one_voice_family_is_held_out() -> None:
    train, heldout = ({split_seed(split, i) for i in (*range(200), 2**30 - 1)} for split in ("train", "heldout"))
    assert not train & heldout
    assert max(train) < min(heldout)
    assert "childlike" not in {voice_family(seed) for seed in train}
    assert "childlike" in {voice_family(seed) for seed in heldout}
    with pytest.raises(ValueError, match="split"):
        split_seed("test", 0)
    with pytest.raises(ValueError, match="index"):
        split_seed("train", 2**30)


def test_captions_name_the_attributes_in_few_words() -> None:
    words: set[str] = set()
    for seed in range(60):
        clip = draw(seed, num_frames=1, height=16, width=16)
        attributes, spoken = clip.attributes, clip.caption.replace(",", "").split()
        assert len(spoken) <= 24
        words.update(spoken)
        for person in attributes["people"]:
            assert {person["kind"], person["hair_name"]} <= set(spoken)
            assert attributes["persons"] == 2 or f"{person['clothes_name']} shirt" in clip.caption
        assert f"{attributes['background_name']} background" in clip.caption
        assert FRAMING_WORDS[attributes["framing"]] in clip.caption
        assert SPEECH_WORDS[attributes["speech"]] in clip.caption
        if attributes["gesture"]:
            assert attributes["gesture"].split()[0] in spoken
        else:
            assert not any(gesture in clip.caption for gesture in GESTURES)
    assert len(words) < 80


def test_keypoints_lie_in_the_picture_at_what_they_name() -> None:
    for seed in range(6):
        clip = draw(seed, framing="whole", height=80, width=48, fail_rate=0, persons=1)
        drawn = clip.keypoints[..., 2] > 0
        assert clip.keypoints.min() >= 0
        assert clip.keypoints.max() <= 1
        assert (clip.keypoints[~drawn] == 0).all()
        assert drawn.float().mean() > 0.95
        torch.testing.assert_close(clip.keypoints[:, 9:11, :2], clip.hands[:, 0, :, :2])
        mouth, box = clip.keypoints[:, 83:91, :2], clip.mouth_box[:, 0]
        assert (mouth >= box[:, None, :2]).all()
        assert (mouth <= box[:, None, 2:]).all()
        gap = (clip.keypoints[:, 89, 1] - clip.keypoints[:, 85, 1]) * 80
        full = gap / clip.attributes["head_unit"] / 0.54
        torch.testing.assert_close(full, clip.mouth_open, atol=0.03, rtol=0)
        # left and right are the character's own
        assert (clip.keypoints[:, 5, 0] > clip.keypoints[:, 6, 0]).all()
    face = draw(1, framing="face", persons=1).keypoints
    assert (face[:, 91:, 2] == 0).all()
    assert (face[:, 11:23, 2] == 0).all()


def test_failing_clips_have_a_foreign_voice_or_no_hands() -> None:
    failed = [draw(seed, num_frames=2, framing="half", speech="speech", fail_rate=1.0) for seed in range(24)]
    assert all(clip.has_audio != clip.has_pose for clip in failed)
    assert {clip.has_audio for clip in failed} == {True, False}
    for seed, clip in enumerate(failed):
        honest = draw(seed, num_frames=2, framing="half", speech="speech", fail_rate=0)
        assert honest.has_audio
        assert honest.has_pose
        assert torch.equal(honest.waveform, clip.waveform) == clip.has_audio
        assert torch.equal(honest.mouth_open, clip.mouth_open)
        assert bool(clip.hands[..., 2].any()) == clip.has_pose
    assert draw(0, speech="silence", framing="half", fail_rate=1.0).has_audio


def test_reference_is_the_same_character_at_another_moment() -> None:
    clip = draw(4, framing="half", persons=1)
    assert not torch.equal(clip.reference, clip.video[:, 0])
    torch.testing.assert_close(clip.reference[:, 0, 0], clip.video[:, 0, 0, 0])


def test_pictures_are_smooth_enough_for_a_coarse_latent() -> None:
    for framing in FRAMINGS:
        picture = make_clip(7, num_frames=5, framing=framing).video.transpose(0, 1)
        again = functional.interpolate(functional.avg_pool2d(picture, 2), scale_factor=2, mode="bicubic")
        psnr = -10 * torch.log10(((again - picture) / 2).square().mean())
        assert psnr > 26


def test_bad_input_is_named() -> None:
    for name, value in (("framing", "wide"), ("persons", 3), ("speech", "humming"), ("height", 8)):
        with pytest.raises(ValueError, match=name):
            draw(0, **{name: value})
