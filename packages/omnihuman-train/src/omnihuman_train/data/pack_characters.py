"""Drawn characters as shards of video, sound, keypoints and notes, with the truth that is known of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from omnihuman_train.data import media
from omnihuman_train.data.build import BuildReport, Made, build
from omnihuman_train.data.characters import FRAME_RATE, split_seed
from omnihuman_train.data.clips import render_sample
from omnihuman_train.data.manifest import Bucket, SampleRecord
from omnihuman_train.data.pack import made_sample, sample_key
from omnihuman_train.data.shards import CLIPS


@dataclass(frozen=True, kw_only=True)
class CharacterJob:
    """A drawn character.

    Attributes:
        index: Number among the training characters.
        bucket: Shape of the sample.
    """

    index: int
    bucket: Bucket

    def __str__(self) -> str:
        return f"characters/train/{self.index}"


@dataclass(frozen=True, kw_only=True)
class CharacterMaker:
    """Makes samples of drawn characters, with the truth that is known of them."""

    def __call__(self) -> Callable[[CharacterJob], Made]:
        """The maker is its own opener: it holds nothing that does not pickle."""
        return self.make

    def make(self, job: CharacterJob) -> Made:
        """Draw, voice and encode one character."""
        bucket = job.bucket
        clip: dict[str, Any] = dict(render_sample(split_seed("train", job.index), *bucket))
        fps = float(FRAME_RATE)
        video = clip["video"].permute(1, 2, 3, 0).contiguous()  # (T, H, W, 3)
        known = {name: clip[name] for name in ("mouth_open", "mouth_box", "hands")}
        members = {
            # Lips of a few pixels would not survive the halved colours of common video.
            "mp4": media.encode_video(video, fps, full_colour=True),
            "flac": media.encode_sound(_length(clip["waveform"].float(), media.sound_samples(bucket.frames, fps))),
            "reference.png": media.encode_picture(clip["reference"][:, 0].permute(1, 2, 0).contiguous()),
            "pose.safetensors": save({"keypoints": clip["keypoints"].float(), **known}),
        }
        record = SampleRecord(
            key=sample_key(str(job), 0.0, bucket.frames / fps),
            source=str(job),
            start=0.0,
            **bucket._asdict(),
            fps=fps,
            has_text=True,
            has_audio=bool(clip["has_audio"]),
            has_pose=bool(clip["has_pose"]),
            has_mouth=True,
            licence="Apache-2.0",
        )
        return made_sample(record, members, {"captions": {"long": clip["caption"]}, "synthetic": True})


def pack_characters(
    out: Path,
    *,
    count: int,
    frames: int,
    sizes: Sequence[tuple[int, int]],
    shard_size: int = 64,
    first: int = 0,
    workers: int = 1,
    progress: Callable[[int], None],
) -> BuildReport:
    """Pack drawn characters, ``count`` of each size; their truth comes along.

    Args:
        out: Folder of the data set.
        count: Characters per size.
        frames: Pixel frames of each.
        sizes: Heights and widths, even.
        shard_size: Samples per shard.
        first: Number of the first training character.
        workers: Processes.
        progress: Called with the number of samples that became available.

    Raises:
        ValueError: a number that cannot be, or as ``build``.
    """
    if count < 1 or frames < 1 or shard_size < 1 or first < 0 or not sizes:
        raise ValueError("--characters, --frames, --shard-size and --sizes must be at least 1")
    if odd := [size for size in sizes if size[0] % 2 or size[1] % 2 or min(size) < 16]:
        raise ValueError(f"--sizes: sides must be even and at least 16, got {odd[0][0]}x{odd[0][1]}")
    jobs = [
        CharacterJob(index=first + number * count + i, bucket=Bucket(frames, *size))
        for number, size in enumerate(sizes)
        for i in range(count)
    ]
    recipe = {"characters": count, "frames": frames, "sizes": list(sizes), "shard_size": shard_size, "first": first}
    return build(
        out,
        kind=CLIPS,
        recipe=recipe,
        jobs=[jobs[i : i + shard_size] for i in range(0, len(jobs), shard_size)],
        open_maker=CharacterMaker(),
        workers=workers,
        progress=progress,
    )


def _length(waveform: Tensor, samples: int) -> Tensor:
    return torch.nn.functional.pad(waveform, (0, max(samples - len(waveform), 0)))[:samples]
