"""The measures: functions of the pipeline that return named numbers. The characters' generator knows the truth."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median

import torch

from omnihuman_infer import OmniHumanPipeline
from omnihuman_train.data.characters import GESTURES, make_clip, split_seed
from omnihuman_train.data.characters.look import BACKGROUND_COLOURS, CLOTHES_COLOURS, HAIR_COLOURS
from omnihuman_train.data.characters.oracle import (
    LEFT_GLOVE,
    RIGHT_GLOVE,
    background_drift,
    hand_error,
    lip_sync,
    mouth_opening,
    pearson,
    region_colours,
)
from small_model.generation import SHAPES, generate, heldout_clip

FRAMES = 57  # 2.28 s
TOKEN_PIXELS = 16  # Sides of the picture's part that one token of the shipped model stands for
# As users write them: short, in words that no caption has, or about nothing that is drawn.
PROMPTS = (
    "a man talking",
    "a person talks",
    "a woman in a blue coat talks",
    "talking",
    "hands",
    "a cartoon man with red hair in a purple shirt, talking",
    "portrait of a friendly teacher who explains something, 4k",
    "She sings happily to the camera!",
)
WITH_HANDS = tuple(shape for shape in SHAPES if shape[2] != "face")
GESTURE_WORDS = re.compile(r"waving (her|his|its) (left|right) hand|" + "|".join(GESTURES))
PALETTES = {"background": BACKGROUND_COLOURS, "clothes": CLOTHES_COLOURS, "hair": HAIR_COLOURS}
Numbers = dict[str, float]


def vae_quality(pipeline: OmniHumanPipeline, count: int) -> Numbers:
    """PSNR of whole held-out clips through the VAE, and the lip sync that survives it."""
    vae, psnr, sync = pipeline.components.vae, [], []
    for index in range(count):
        clip = heldout_clip(index, num_frames=FRAMES, speech="speech")
        with torch.inference_mode():
            seen = vae.decode(vae.encode(clip.video[None]))[0].clamp(-1, 1)
        psnr.append(float(-10 * ((seen - clip.video) / 2).square().mean().log10()))
        sync.append(lip_sync(mouth_opening(seen, clip.mouth_box)[:, 0], clip.mouth_open).correlation)
    return {"psnr_db": fmean(psnr), "lip_sync_r": fmean(sync)}


def lips(pipeline: OmniHumanPipeline, count: int) -> Numbers:
    """Lip sync with the voice alone; the same mouths against another clip's truth; mouths under silence."""
    own, lags, speech, silent, openings, truths, errors, edges = [], [], [], [], [], [], [], []
    for index in range(count):
        clip = heldout_clip(index, num_frames=FRAMES, speech="speech")
        frames = generate(pipeline, clip, prompt=clip.caption)
        opening = mouth_opening(frames, clip.mouth_box)[:, 0]
        result = lip_sync(opening, clip.mouth_open)
        own.append(result.correlation)
        lags.append(float(result.best_lag))
        speech.append(float(opening.mean()))
        openings.append(opening)
        truths.append(clip.mouth_open)
        errors.append(identity_error(frames, clip.reference, clip.attributes))
        edges.append(block_edges(frames) / block_edges(clip.video))
        if index % 4 == 0:
            quiet = generate(pipeline, clip, waveform=torch.zeros_like(clip.waveform), prompt=clip.caption)
            silent.append(float(mouth_opening(quiet, clip.mouth_box).mean()))
    shuffled = [pearson(opening, truths[(i + 1) % count]) for i, opening in enumerate(openings)]
    return {
        "lip_sync_r": fmean(own),
        "lip_sync_r_worst": min(own),
        "best_lag_median_frames": median(lags),
        "best_lag_within_1_share": fmean(abs(lag) <= 1 for lag in lags),
        "other_voice_r": fmean(shuffled),
        "silence_opening_share_of_speech": fmean(silent) / fmean(speech),
        "identity_colour_error": fmean(errors),
        "block_edges_over_truth": fmean(edges),
    }


def block_edges(frames: torch.Tensor) -> float:
    """Mean step between neighbouring pixels at the edges of tokens, as a multiple of the mean step inside them.

    A still picture of a person has its own: faces and bodies stand in the middle.
    """
    at, inside = 0.0, 0.0
    for picture in (frames, frames.transpose(-1, -2)):
        steps = picture.diff(dim=-1).abs()
        edge = torch.arange(1, picture.shape[-1]) % TOKEN_PIXELS == 0
        at, inside = at + float(steps[..., edge].mean()), inside + float(steps[..., ~edge].mean())
    return at / inside


def prompts(pipeline: OmniHumanPipeline, count: int) -> Numbers:
    """Lip sync and colours of the picture under prompts that are not captions."""
    sync, errors = [], []
    for index in range(count):
        clip = heldout_clip(6000 + index, num_frames=FRAMES, speech="speech")
        frames = generate(pipeline, clip, prompt=PROMPTS[index % len(PROMPTS)])
        sync.append(lip_sync(mouth_opening(frames, clip.mouth_box)[:, 0], clip.mouth_open).correlation)
        errors.append(identity_error(frames, clip.reference, clip.attributes))
    return {
        "lip_sync_r": fmean(sync),
        "lip_sync_r_worst": min(sync),
        "identity_colour_error": fmean(errors),
        "identity_colour_error_worst": max(errors),
    }


def identity_error(frames: torch.Tensor, reference: torch.Tensor, attributes: dict[str, object]) -> float:
    """Mean absolute RGB difference of skin, hair and clothes between frames and reference, in units of [0, 1]."""
    seen, wanted = region_colours(frames, attributes), region_colours(reference, attributes)
    return fmean(
        abs(a - b) for name in wanted if name != "background" for a, b in zip(seen[name], wanted[name], strict=True)
    )


def poses(pipeline: OmniHumanPipeline, count: int) -> Numbers:
    """Hands under pose alone; hands and lips under pose and voice."""
    alone, missing, both, sync = [], [], [], []
    for index in range(count):
        shape = WITH_HANDS[index % len(WITH_HANDS)]
        clip = heldout_clip(1000 + index, num_frames=FRAMES, shape=shape, speech="speech")
        result = hand_error(generate(pipeline, clip, audio=False, pose=True, prompt=clip.caption), clip.hands)
        alone.append(result.distance)
        missing.append(result.missing)
        frames = generate(pipeline, clip, pose=True, prompt=clip.caption)
        both.append(hand_error(frames, clip.hands).distance)
        sync.append(lip_sync(mouth_opening(frames, clip.mouth_box)[:, 0], clip.mouth_open).correlation)
    return {
        "hand_error_share_of_short_side": finite_mean(alone),
        "hands_missing_share": fmean(missing),
        "hand_error_with_voice": finite_mean(both),
        "lip_sync_r_with_pose": fmean(sync),
    }


def text(pipeline: OmniHumanPipeline, count: int) -> Numbers:
    """What the prompt changes: hands under prompts that differ in the gesture alone, and colours without a picture.

    Hands: mean height in units of the picture, 0 at the top. Colours: share of clips whose colour lies nearest to the
    one that the caption names.
    """
    words: dict[str, list[float]] = {"raising both hands": [], "arms down": []}
    named: dict[str, list[float]] = {"background": [], "clothes": [], "hair": []}
    for index in range(count):
        clip = heldout_clip(2000 + index, num_frames=FRAMES, shape=(64, 64, "half"), speech="speech")
        for wanted, heights in words.items():
            prompt = GESTURE_WORDS.sub(wanted, clip.caption)
            heights.append(hand_height(generate(pipeline, clip, prompt=prompt)))
        seen = region_colours(generate(pipeline, clip, prompt=clip.caption, picture=False), clip.attributes)
        for name, palette in PALETTES.items():
            truth = clip.attributes if name == "background" else clip.attributes["people"][0]["colours"]
            named[name].append(float(nearest(palette, seen[name]) == nearest(palette, truth[name])))
    raised, down = words["raising both hands"], words["arms down"]
    return {
        "hands_y_raising": finite_mean(raised),
        "hands_y_down": finite_mean(down),
        "higher_when_asked_share": fmean(up < low for up, low in zip(raised, down, strict=True)),
        **{f"{name}_named_share": fmean(hits) for name, hits in named.items()},
        **{f"{name}_chance": 1 / len(palette) for name, palette in PALETTES.items()},
    }


def nearest(palette: Mapping[str, Sequence[float]], colour: Sequence[float]) -> str:
    """Name of the palette's colour that lies nearest."""
    return min(palette, key=lambda name: sum((a - b) ** 2 for a, b in zip(palette[name], colour, strict=True)))


def hand_height(frames: torch.Tensor) -> float:
    """Mean vertical position of both gloves after the first second, 0 at the top and 1 at the bottom."""
    picture = (frames[:, 25:] + 1) / 2
    rows = (torch.arange(picture.shape[2]) + 0.5) / picture.shape[2]
    heights = []
    for glove in (LEFT_GLOVE, RIGHT_GLOVE):
        distance = (picture - torch.tensor(glove)[:, None, None, None]).norm(dim=0)
        weight = (1 - distance / 0.32).clamp_min(0).sum((0, 2))
        if weight.sum() > 0:
            heights.append(float((weight * rows).sum() / weight.sum()))
    return fmean(heights) if heights else float("nan")


def speaker_region(pipeline: OmniHumanPipeline, count: int) -> Numbers:
    """Two characters, one voice: movement of the mouth outside the region as a share of the one inside."""
    shares, sync = [], []
    for index in range(count):
        clip = heldout_clip(3000 + index, num_frames=FRAMES, shape=(48, 80, "face"), persons=2, speech="speech")
        side = index % 2
        region = (0.0, 0.0, 0.5, 1.0) if side == 0 else (0.5, 0.0, 1.0, 1.0)
        opening = mouth_opening(generate(pipeline, clip, prompt=clip.caption, speaker_region=region), clip.mouth_box)
        shares.append(float(opening[:, 1 - side].std() / opening[:, side].std()))
        sync.append(lip_sync(opening[:, side], clip.mouth_open).correlation)
    return {"outside_movement_share": fmean(shares), "inside_lip_sync_r": fmean(sync)}


def long_clip(pipeline: OmniHumanPipeline, count: int) -> Numbers:
    """20 seconds: change of the background from the first to the last second."""
    drifts, sync = [], []
    for index in range(max(1, count // 10)):
        clip = make_clip(
            split_seed("heldout", 4000 + index),
            num_frames=500,
            framing="half",
            persons=1,
            speech="speech",
            fail_rate=0.0,
        )
        frames = generate(pipeline, clip, prompt=clip.caption)
        drifts.append(background_drift(frames, clip.attributes))
        sync.append(lip_sync(mouth_opening(frames, clip.mouth_box)[:, 0], clip.mouth_open).correlation)
    return {"background_drift": fmean(drifts), "lip_sync_r": fmean(sync)}


def finite_mean(values: list[float]) -> float:
    """Mean of what could be measured; NaN where nothing could."""
    finite = [value for value in values if value == value]
    return fmean(finite) if finite else float("nan")


MEASURES: dict[str, Callable[[OmniHumanPipeline, int], Numbers]] = {
    "vae": vae_quality,
    "lips": lips,
    "prompts": prompts,
    "pose": poses,
    "text": text,
    "speaker_region": speaker_region,
    "long_clip": long_clip,
}

# (measure, number, comparison, goal)
GOALS: tuple[tuple[str, str, str, float], ...] = (
    ("vae", "psnr_db", ">=", 30.0),
    ("lips", "lip_sync_r", ">=", 0.7),
    ("lips", "best_lag_median_frames", "within", 1.0),
    ("lips", "other_voice_r", "within", 0.15),
    ("lips", "silence_opening_share_of_speech", "<=", 0.15),
    ("lips", "identity_colour_error", "<=", 0.05),
    ("lips", "block_edges_over_truth", "<=", 1.2),
    ("prompts", "lip_sync_r", ">=", 0.7),
    ("prompts", "identity_colour_error", "<=", 0.05),
    ("text", "higher_when_asked_share", ">=", 0.9),
    ("text", "background_named_share", ">=", 0.9),
    ("text", "clothes_named_share", ">=", 0.9),
    ("text", "hair_named_share", ">=", 0.9),
    ("pose", "hand_error_share_of_short_side", "<=", 0.04),
    ("speaker_region", "outside_movement_share", "<=", 0.2),
    ("long_clip", "background_drift", "<=", 0.02),
    ("footprint", "seconds_for_4s_clip", "<=", 90.0),
    ("footprint", "peak_mb_4s", "<=", 3072.0),
    ("footprint", "peak_20s_over_5s", "<=", 1.1),
)
