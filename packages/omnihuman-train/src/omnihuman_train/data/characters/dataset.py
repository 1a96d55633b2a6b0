"""Assembly of samples: one integer seed gives one clip with its voice, caption, keypoints and truth.

Training and held-out seeds never overlap, and one voice family speaks in held-out clips only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnihuman_train.data.characters.captions import write_caption
from omnihuman_train.data.characters.character import (
    MOUTH_BOX_GROWTH,
    MOUTH_HALF_HEIGHT,
    MOUTH_HALF_WIDTH,
    MOUTH_TOP,
    Pose,
    draw_character,
    make_pose,
)
from omnihuman_train.data.characters.keypoints import keypoints_of
from omnihuman_train.data.characters.look import Look, make_look, shade
from omnihuman_train.data.characters.motion import GESTURES, make_motion, smooth_curve
from omnihuman_train.data.characters.scene import CORNERS, layout, make_background
from omnihuman_train.data.characters.shapes import Canvas
from omnihuman_train.data.characters.voices import (
    FRAME_RATE,
    HELDOUT_FAMILY,
    SPEECH_KINDS,
    TRAIN_FAMILIES,
    VoiceTrack,
    synthesise,
)

FRAMINGS = ("face", "half", "whole")
HELDOUT_START = 1 << 30


@dataclass(frozen=True, kw_only=True)
class CharacterClip:
    """One synthetic clip and its truth; coordinates are in widths and heights of the picture, [0, 1].

    Attributes:
        video: (3, T, H, W) float32 in [-1, 1], 25 fps.
        reference: (3, H, W) in [-1, 1]: same character, background and framing at a neutral moment, mouth shut.
        waveform: (samples,) float32 mono 16 kHz, T / 25 s long.
        keypoints: (T, 133, 3) COCO-WholeBody order; x, y, score (0 = not drawn); of the first person.
        mouth_open: (T,) truth in [0, 1].
        mouth_box: (T, P, 4) x0, y0, x1, y1 round each of the P persons' mouths.
        hands: (T, P, 2, 3) left and right hand centre x, y and visible flag.
        caption: a sentence of at most 24 words.
        attributes: everything that was drawn, including colours and the boxes to read them in.
        has_audio: whether the voice belongs to the mouth.
        has_pose: whether the hands can be trusted.
    """

    video: Tensor
    reference: Tensor
    waveform: Tensor
    keypoints: Tensor
    mouth_open: Tensor
    mouth_box: Tensor
    hands: Tensor
    caption: str
    attributes: dict[str, Any]
    has_audio: bool
    has_pose: bool


def split_seed(split: str, index: int) -> int:
    """The seed of clip `index` of "train" or "heldout".

    Raises:
        ValueError: unknown split, or an index outside [0, 2^30).
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split is {split!r}; choose 'train' or 'heldout'")
    if not 0 <= index < HELDOUT_START:
        raise ValueError(f"index is {index}; choose one in [0, {HELDOUT_START})")
    return index + (HELDOUT_START if split == "heldout" else 0)


def voice_family(seed: int) -> str:
    """The voice family of a seed: held-out seeds use the held-out family every other clip."""
    if seed >= HELDOUT_START and seed % 2:
        return HELDOUT_FAMILY
    return TRAIN_FAMILIES[int(np.random.default_rng([seed, 12]).integers(len(TRAIN_FAMILIES)))]


def _region(pose: Pose, x: float, y: float, half_x: float, half_y: float, height: int, width: int) -> list[float]:
    """The box of a region of a character, averaged over the clip: x0, y0, x1, y1."""
    cx, cy = (float(v[:-1].mean()) for v in pose.on_head(x, y))
    box = ((cx - half_x * pose.unit) / width, (cy - half_y * pose.unit) / height,
           (cx + half_x * pose.unit) / width, (cy + half_y * pose.unit) / height)  # fmt: skip
    return [min(max(v, 0.0), 1.0) for v in box]


def _describe(look: Look, pose: Pose, height: int, width: int) -> dict[str, Any]:
    hair_y = {"robot": -0.6, "cat": -0.62}.get(look.kind, -0.86)
    hair_half = (0.3, 0.05) if look.kind == "robot" else (0.18, 0.08)
    skin = shade(look.skin, 0.94) if look.shaded else look.skin
    return {
        "kind": look.kind, "hair_name": look.hair_name, "clothes_name": look.clothes_name,
        "hair_style": look.hair_style,
        "colours": {"skin": skin, "hair": look.hair, "clothes": look.clothes},
        "regions": {
            "skin": _region(pose, 0.0, -0.08 if look.kind != "cat" else 0.0, 0.12, 0.12, height, width),
            "hair": _region(pose, 0.0, hair_y, *hair_half, height, width),
            "clothes": _region(pose, 0.0, 1.26, 0.22, 0.07, height, width),
        },
    }  # fmt: skip


def _mouth_box(pose: Pose, height: int, width: int) -> Tensor:
    x, y = pose.on_head(0.0, MOUTH_TOP + MOUTH_HALF_HEIGHT)
    reach_x = MOUTH_BOX_GROWTH[0] * MOUTH_HALF_WIDTH * pose.unit
    reach_y = MOUTH_BOX_GROWTH[1] * MOUTH_HALF_HEIGHT * pose.unit
    box = torch.stack(
        [(x - reach_x) / width, (y - reach_y) / height, (x + reach_x) / width, (y + reach_y) / height], dim=-1
    )
    return box.clamp(0, 1)


def make_clip(
    seed: int,
    *,
    num_frames: int = 49,
    height: int = 64,
    width: int = 64,
    framing: str | None = None,
    speech: str | None = None,
    persons: int | None = None,
    fail_rate: float = 0.1,
) -> CharacterClip:
    """Draws one clip; the same arguments always give the same clip.

    Args:
        seed: from `split_seed`.
        num_frames: T, at 25 fps.
        height: H in pixels, at least 16.
        width: W in pixels, at least 16.
        framing: "face", "half" or "whole"; random when `None`.
        speech: "speech", "singing", "silence" or "noise"; random when `None` (75, 10, 8, 7 %).
        persons: 1 or 2; random when `None` (8 % two, never in portrait). Two speak in chorus.
        fail_rate: share of clips that fail a filter on purpose: half with another clip's voice, half without hands.

    Raises:
        ValueError: an argument outside what is listed here.
    """
    if framing is not None and framing not in FRAMINGS:
        raise ValueError(f"framing is {framing!r}; choose one of {FRAMINGS}")
    if persons is not None and persons not in (1, 2):
        raise ValueError(f"persons is {persons}; choose 1 or 2")
    if speech is not None and speech not in SPEECH_KINDS:
        raise ValueError(f"speech is {speech!r}; choose one of {SPEECH_KINDS}")
    if height < 16 or width < 16:
        raise ValueError(f"height, width is {height}, {width}; choose at least 16 pixels each")
    rng = np.random.default_rng([seed, 10])
    drawn_framing = FRAMINGS[int(rng.choice(3, p=[0.4, 0.4, 0.2]))]
    drawn_speech = SPEECH_KINDS[int(rng.choice(4, p=[0.75, 0.10, 0.08, 0.07]))]
    drawn_persons = 2 if rng.random() < 0.08 and width >= height else 1
    framing, speech, persons = framing or drawn_framing, speech or drawn_speech, persons or drawn_persons
    failure = float(rng.random()) / fail_rate if fail_rate > 0 else 1.0
    gesture, side = GESTURES[int(rng.integers(len(GESTURES)))], int(rng.integers(2))
    voice = synthesise(seed, num_frames, kind=speech, family=voice_family(seed))
    has_audio = not (failure < 0.5 and speech in ("speech", "singing"))
    arms = framing != "face" and not 0.5 <= failure < 1.0

    seconds = np.append(np.arange(num_frames), num_frames + 40).astype(np.float32) / FRAME_RATE
    pan = None
    if rng.random() < 0.1:
        pan = torch.from_numpy(smooth_curve(rng, seconds, 0.08, 0.15)) * 0.035 * width
    background, described = make_background(rng, height, width, pan)
    canvas = Canvas(background, num_frames + 1)
    looks, poses, boxes, people = [], [], [], []
    keypoints = torch.zeros(0)
    unit, rest = layout(framing, persons, height, width)
    unit *= float(rng.uniform(0.95, 1.0))
    for person in range(persons):
        look = make_look(rng)
        motion = make_motion(rng, gesture, side, voice.mouth_open, voice.rounding, voice.loudness)
        centre = (person + 0.5) / persons + float(rng.uniform(-0.02, 0.02)) / persons
        origin = torch.tensor([[centre * width, (rest + float(rng.uniform(-0.015, 0.015))) * height]])
        origin = origin.repeat(num_frames + 1, 1)
        if pan is not None:
            origin[:, 0] += pan
        pose = make_pose(motion, origin, unit, min(height, width), reach=0.5 * width / persons / unit - 0.32)
        draw_character(canvas, look, pose, motion, arms=arms, legs=framing == "whole")
        if person == 0:
            keypoints = keypoints_of(look, pose, motion, arms=arms, legs=framing == "whole", height=height, width=width)
        looks.append(look)
        poses.append(pose)
        boxes.append(_mouth_box(pose, height, width))
        people.append(_describe(look, pose, height, width))

    hands = torch.stack([pose.hands for pose in poses], dim=1) / torch.tensor([width, height])  # (N, P, 2, 2)
    visible = ((hands >= 0) & (hands <= 1)).all(-1, keepdim=True) & arms
    image = canvas.image.mul_(2).sub_(1)
    attributes: dict[str, Any] = {
        "seed": seed, "framing": framing, "speech": speech, "gesture": gesture if arms else None,
        "gesture_side": ("left", "right")[side], "persons": persons, "people": people, "camera_pan": pan is not None,
        "head_unit": unit, "voice": voice.attributes, **described,
        "background_regions": [list(box) for box in CORNERS],
    }  # fmt: skip
    caption = write_caption(rng, looks, described["background_name"], framing, speech, attributes["gesture"], side)
    return CharacterClip(
        video=image[:-1].transpose(0, 1).contiguous(),  # (3, T, H, W)
        reference=image[-1].clone(),
        waveform=torch.from_numpy((voice if has_audio else _other_voice(seed, num_frames, speech)).waveform),
        keypoints=keypoints[:-1],
        mouth_open=torch.from_numpy(voice.mouth_open),
        mouth_box=torch.stack(boxes, dim=1)[:-1],
        hands=torch.cat([hands, visible.float()], dim=-1)[:-1],
        caption=caption,
        attributes=attributes,
        has_audio=has_audio,
        has_pose=arms,
    )


def _other_voice(seed: int, num_frames: int, speech: str) -> VoiceTrack:
    """The voice of a clip that no split contains."""
    return synthesise(seed + 2 * HELDOUT_START, num_frames, kind=speech, family=voice_family(seed))
