"""Synthetic clips on disk: characters and voices of :mod:`omnihuman_train.data.characters`, rendered once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from omnihuman_train.config import ClipsConfig
from omnihuman_train.data.cached import Sample, write_shards
from omnihuman_train.data.characters import make_clip, split_seed


def bucket_name(height: int, width: int) -> str:
    """Folder of a size bucket."""
    return f"{height}x{width}"


def render_clips(config: ClipsConfig, folder: Path, *, progress: Callable[[int], None]) -> None:
    """Render the training clips of every size bucket into ``folder/<height>x<width>/``.

    Each sample holds ``video`` (3, T, H, W) uint8, ``reference`` (3, 1, H, W) uint8, ``waveform`` (n,) float16,
    ``keypoints`` (T, 133, 3) float16, ``mouth_open`` (T,), ``mouth_box`` (T, 2, 4), ``hands`` (T, 2, 2, 3), the flags
    ``has_audio`` and ``has_pose``, and its ``caption``.
    """
    offset = config.seed
    for (height, width), count, framings in zip(config.sizes, config.clips, config.framings, strict=True):

        def make(
            index: int, size: tuple[int, int] = (height, width), kinds: tuple[str, ...] = framings, offset: int = offset
        ) -> Sample:
            seed = split_seed("train", offset + index)
            return render_sample(seed, config.num_frames, *size, framing=kinds[index % len(kinds)])

        write_shards(folder / bucket_name(height, width), make, count, size=config.shard_size, progress=progress)
        offset += count


def render_sample(seed: int, num_frames: int, height: int, width: int, *, framing: str | None = None) -> Sample:
    """One clip as tensors of fixed shapes; a second person that is not there has a box and hands of zeros."""
    clip = make_clip(seed, num_frames=num_frames, height=height, width=width, framing=framing)
    persons = clip.mouth_box.shape[1]
    mouth_box = torch.zeros(num_frames, 2, 4)
    mouth_box[:, :persons] = clip.mouth_box
    hands = torch.zeros(num_frames, 2, 2, 3)
    hands[:, :persons] = clip.hands
    return {
        "video": _to_bytes(clip.video),
        "reference": _to_bytes(clip.reference[:, None]),
        "waveform": clip.waveform.half(),
        "keypoints": clip.keypoints.half(),
        "mouth_open": clip.mouth_open.float(),
        "mouth_box": mouth_box,
        "hands": hands,
        "has_audio": torch.tensor(clip.has_audio),
        "has_pose": torch.tensor(clip.has_pose),
        "caption": clip.caption,
    }


def _to_bytes(video: torch.Tensor) -> torch.Tensor:
    return ((video + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_bytes(video: torch.Tensor) -> torch.Tensor:
    """uint8 pixels to [-1, 1]."""
    return video.float() / 127.5 - 1
