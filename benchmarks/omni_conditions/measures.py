"""What is measured on generated frames: lips, hands, identity and distributions, each against the truth."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import torch
from small_model.measures import finite_mean, identity_error
from torch import Tensor

from omni_conditions.frechet import WINDOW, features, frechet_distance
from omnihuman_train.data.characters import CharacterClip
from omnihuman_train.data.characters.character import LEFT_GLOVE, RIGHT_GLOVE
from omnihuman_train.data.characters.oracle import lip_sync, mouth_opening, pearson

# Share of the colour distance between a glove and everything else, as the oracle reads hands.
GLOVE_REACH = 0.32
PER_CLIP = ("lip_sync_r", "other_voice_r", "identity_error", "hand_motion", "hand_motion_gap", "hands_missing")


def measure(frames: Tensor, clips: Sequence[CharacterClip]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Means over clips, with the Frechet distances; and the values per clip (NaN where a clip shows no hands).

    ``lip_sync_r`` is the correlation of the mouth read off the frames with the truth, ``other_voice_r`` that with the
    truth of the next clip; ``hand_motion`` the standard deviation of the hands' places in short sides and
    ``hand_motion_gap`` its distance to that of the rendered truth, read in the same way; ``hands_missing`` the share
    of visible hands that cannot be found.

    Args:
        frames: ``(N, 3, T, H, W)`` in [-1, 1].
        clips: Their truth.
    """
    openings = [mouth_opening(made, clip.mouth_box)[:, 0] for made, clip in zip(frames, clips, strict=True)]
    values: dict[str, list[float]] = {name: [] for name in PER_CLIP}
    for index, (made, clip) in enumerate(zip(frames, clips, strict=True)):
        other = clips[(index + 1) % len(clips)]
        values["lip_sync_r"].append(lip_sync(openings[index], clip.mouth_open).correlation)
        values["other_voice_r"].append(pearson(openings[index], other.mouth_open))
        values["identity_error"].append(identity_error(made, clip.reference, clip.attributes))
        visible = clip.hands[:, 0, :, 2] > 0.5  # (T, 2)
        motion, missing = hand_motion(made, visible)
        truth, _ = hand_motion(clip.video, visible)
        values["hand_motion"].append(motion)
        values["hand_motion_gap"].append(abs(motion - truth))
        values["hands_missing"].append(missing)
    truth_frames = torch.stack([clip.video for clip in clips])
    means = {name: finite_mean(numbers) for name, numbers in values.items()}
    for name, length in (("frechet_frames", 1), ("frechet_video", WINDOW)):
        means[name] = frechet_distance(features(frames, frames=length), features(truth_frames, frames=length))
    return means, values


def hand_motion(frames: Tensor, visible: Tensor) -> tuple[float, float]:
    """How much the hands move, and the share of visible hands that is not found; NaN for a clip without hands.

    Args:
        frames: ``(3, T, H, W)`` in [-1, 1] of one person.
        visible: ``(T, 2)`` left and right hand of the truth.

    Returns:
        The root mean square over hands and axes of the standard deviation of a hand's place over time, in short
        sides; 0 where no hand is found in two frames.
    """
    if not visible.any():
        return float("nan"), float("nan")
    picture = (frames + 1) / 2
    height, width = picture.shape[2:]
    xs, ys = (torch.arange(width) + 0.5) / min(height, width), (torch.arange(height) + 0.5) / min(height, width)
    variances, found_count = [], 0
    for side, glove in enumerate((LEFT_GLOVE, RIGHT_GLOVE)):
        distance = (picture - torch.tensor(glove)[:, None, None, None]).norm(dim=0)
        weight = (1 - distance / GLOVE_REACH).clamp_min(0)  # (T, H, W)
        total = weight.sum((1, 2))
        # Less than two pixels' worth of a glove's colour is none.
        found = visible[:, side] & (total > 2)
        found_count += int(found.sum())
        if int(found.sum()) > 1:
            places = torch.stack([weight.sum(1) @ xs, weight.sum(2) @ ys], 1)[found] / total[found, None]
            variances.append(float(places.var(0, unbiased=False).mean()))
    return (fmean(variances) ** 0.5 if variances else 0.0), 1 - found_count / int(visible.sum())
