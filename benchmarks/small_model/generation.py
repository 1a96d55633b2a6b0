"""Held-out clips through the pipeline, as a user would: a PNG, a WAV and a pose file in, frames out."""

from __future__ import annotations

import tempfile
import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from omnihuman_conditions.pose.files import save_pose
from omnihuman_conditions.pose.keypoints import PoseSequence
from omnihuman_infer import GenerateRequest, OmniHumanPipeline
from omnihuman_train.data.characters import FRAME_RATE, SAMPLE_RATE, CharacterClip, make_clip, split_seed

# (height, width, framing) of the buckets that the model was trained on.
SHAPES = ((64, 64, "face"), (64, 64, "half"), (80, 48, "whole"), (48, 80, "half"))


def heldout_clip(
    index: int, *, num_frames: int, shape: tuple[int, int, str] | None = None, **options: Any
) -> CharacterClip:
    """Held-out clip ``index`` whose voice and pose are its own; shapes are taken in turn."""
    height, width, framing = shape or SHAPES[index % len(SHAPES)]
    return make_clip(
        split_seed("heldout", index),
        num_frames=num_frames,
        height=height,
        width=width,
        framing=framing,
        fail_rate=0.0,
        **{"persons": 1, **options},
    )


def generate(
    pipeline: OmniHumanPipeline,
    clip: CharacterClip,
    *,
    audio: bool = True,
    pose: bool = False,
    prompt: str | None = None,
    waveform: Tensor | None = None,
    picture: bool = True,
    **request: Any,
) -> Tensor:
    """Frames generated from the clip's reference picture, or at its aspect without one, ``(3, T, H, W)`` in [-1, 1]."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        inputs: dict[str, Any] = {"out": root / "out.mp4", "prompt": prompt}
        if picture:
            write_picture(root / "reference.png", clip.reference)
            inputs["image"] = root / "reference.png"
        else:
            height, width = clip.reference.shape[1:]
            inputs["aspect"] = width / height
        if audio:
            write_wav(root / "voice.wav", clip.waveform if waveform is None else waveform)
            inputs["audio"] = root / "voice.wav"
        if pose:
            save_pose(PoseSequence(keypoints=clip.keypoints, fps=FRAME_RATE), root / "pose.json")
            inputs["pose"] = root / "pose.json"
        prepared = pipeline.prepare(GenerateRequest(**inputs, allow_silence=True, **request))
        pieces = list(pipeline.frames(prepared))
    frames = torch.from_numpy(np.concatenate(pieces)).permute(3, 0, 1, 2).float() / 127.5 - 1
    return frames[:, : clip.video.shape[1]] if audio or pose else frames


def write_picture(path: Path, picture: Tensor) -> None:
    """PNG of ``(3, H, W)`` in [-1, 1]."""
    Image.fromarray(((picture + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()).save(path)


def write_wav(path: Path, waveform: Tensor) -> None:
    """16-bit mono at 16 kHz."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((waveform.clamp(-1, 1) * 32767).round().to(torch.int16).numpy().tobytes())
