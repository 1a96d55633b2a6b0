"""From a folder of clips to shards of video, sound, keypoints and notes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save

from omnihuman_train.data import clip_files, media
from omnihuman_train.data.build import BuildReport, Made, build, digest
from omnihuman_train.data.manifest import Bucket, SampleRecord
from omnihuman_train.data.shards import CLIPS, BrokenSampleError

# Sound passes for lip-synced from this confidence of SyncNet on, and up to this many frames of delay, which is then
# taken out (as LatentSync filters its data).
MIN_SYNC_CONFIDENCE, MAX_SYNC_OFFSET, SYNC_FPS = 3.0, 6.0, 25.0


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """How clips are cut and scaled.

    Attributes:
        fps: Frames per second of the samples.
        frames: Lengths of a sample in frames; of a clip, the longest that fit are taken first, what is left is cut off.
        area: Target ``H * W`` in pixels; the shape of a clip is kept as well as ``multiple`` allows.
        multiple: Sides are multiples of this many pixels.
        shard_size: Samples per shard.
        licence: Licence of clips whose notes name none.
        assume_sync: Take voices for lip-synced where the notes say nothing of it.
    """

    fps: float = 25.0
    frames: tuple[int, ...] = (121, 61)
    area: int = 480 * 832
    multiple: int = 16
    shard_size: int = 64
    licence: str | None = None
    assume_sync: bool = False

    def __post_init__(self) -> None:
        if not self.frames or min(self.frames) < 1 or not 0 < self.fps < 1000:
            raise ValueError(f"--frames and --fps must be positive, got {self.frames}, {self.fps:g}")
        if self.multiple < 2 or self.multiple % 2 or self.area < self.multiple**2 or self.shard_size < 1:
            raise ValueError(
                "--multiple must be even, --area at least its square and --shard-size at least 1, "
                f"got {self.multiple}, {self.area}, {self.shard_size}"
            )


@dataclass(frozen=True, kw_only=True)
class SpanJob:
    """A span of a clip.

    Attributes:
        path: Path in the folder of clips.
        start: Seconds.
        bucket: Shape of the sample.
    """

    path: str
    start: float
    bucket: Bucket

    def __str__(self) -> str:
        return f"{self.path} @ {self.start:g} s"


@dataclass(frozen=True, kw_only=True)
class ClipMaker:
    """Makes samples of spans of clips."""

    folder: Path
    config: PackConfig

    def __call__(self) -> Callable[[SpanJob], Made]:
        """The maker is its own opener: it holds nothing that does not pickle."""
        return self.make

    def make(self, job: SpanJob) -> Made:
        """Read, scale and encode one span.

        Raises:
            BrokenSampleError: clip, notes or keypoints cannot be used.
        """
        path, bucket, fps = self.folder / job.path, job.bucket, self.config.fps
        info, notes = clip_files.probe(path), clip_files.read_notes(path)
        size = (bucket.height, bucket.width)
        span: dict[str, Any] = {"start": job.start, "frames": bucket.frames, "fps": fps}
        offset = clip_files.note(notes, "sync_offset", float, None)
        has_audio = _is_synced(notes, offset, self.config.assume_sync) and info.has_sound
        members = {"mp4": media.encode_video(clip_files.read_video(path, **span, size=size), fps)}
        if info.has_sound:
            delay = (offset or 0.0) / SYNC_FPS if has_audio else 0.0
            sound = clip_files.read_sound(path, start=job.start + delay, frames=bucket.frames, fps=fps)
            members["flac"] = media.encode_sound(sound)
        has_pose = clip_files.pose_path(path).is_file()
        if has_pose:
            keypoints = clip_files.read_pose(path, **span, info=info, size=size)
            members["pose.safetensors"] = save({"keypoints": keypoints})
            has_pose = bool(clip_files.note(notes, "has_pose", bool, True))
        licence = clip_files.note(notes, "licence", str, self.config.licence)
        if not licence:
            raise BrokenSampleError("no licence: write one into its notes, or give --licence for all clips without")
        source = clip_files.note(notes, "source", str, job.path)
        # Several files may come from one place: its name alone would not tell them apart.
        origin = source if source == job.path else f"{source}\n{job.path}"
        record = SampleRecord(
            key=sample_key(origin, job.start, bucket.frames / fps),
            source=source,
            start=job.start,
            **bucket._asdict(),
            fps=fps,
            has_text=bool(_captions(notes)),
            has_audio=has_audio,
            has_pose=has_pose,
            has_mouth=False,
            licence=licence,
        )
        told = {**notes, "captions": _captions(notes)}
        if has_audio and offset:
            # The delay is taken out of the sound of the sample.
            told |= {"sync_offset": 0.0, "sync_shift": offset}
        return made_sample(record, members, told)


def pack_clips(
    clips: Path,
    out: Path,
    config: PackConfig,
    *,
    workers: int = 1,
    progress: Callable[[int], None],
    total: Callable[[int], None],
) -> BuildReport:
    """Pack the video files below ``clips``; see :func:`omnihuman_train.data.build.build`.

    Args:
        clips: Folder of video files.
        out: Folder of the data set.
        config: How they are cut and scaled.
        workers: Processes.
        progress: Called with the number of samples that became available.
        total: Called with their number in all.

    Raises:
        ValueError: no clips, or as ``build``.
    """
    jobs: list[SpanJob] = []
    unusable: dict[str, str] = {}
    sources = []
    for path in clip_files.find_clips(clips):
        name = path.relative_to(clips).as_posix()
        try:
            info = clip_files.probe(path)
        except BrokenSampleError as error:
            unusable[name] = str(error)
            continue
        sources.append((name, path.stat().st_size))
        size = fit_size(info.height, info.width, config.area, config.multiple)
        spans = cut(info.seconds, config.fps, config.frames)
        if not spans:
            unusable[name] = f"{info.seconds:.2f} s, shorter than the shortest sample, {min(config.frames)} frames"
        jobs += [SpanJob(path=name, start=start, bucket=Bucket(frames, *size)) for start, frames in spans]
    # Shapes together: a batch has one, and reads from few places then.
    jobs.sort(key=lambda job: (job.bucket, job.path, job.start))
    recipe = {"pack": asdict(config), "clips": digest(sources), "unusable": unusable}
    total(len(jobs))
    report = build(
        out,
        kind=CLIPS,
        recipe=recipe,
        jobs=[jobs[i : i + config.shard_size] for i in range(0, len(jobs), config.shard_size)],
        open_maker=ClipMaker(folder=clips, config=config),
        workers=workers,
        progress=progress,
    )
    return BuildReport(
        samples=report.samples, shards=report.shards, left=report.left, broken={**unusable, **report.broken}
    )


def sample_key(origin: str, start: float, seconds: float) -> str:
    """sha1 of origin (what no other clip of the data set has) and span, which names the sample's files."""
    return hashlib.sha1(f"{origin}\n{start:.6f}\n{seconds:.6f}".encode()).hexdigest()


def fit_size(height: int, width: int, area: int, multiple: int) -> tuple[int, int]:
    """Sides of about ``area`` pixels in the shape of ``height`` x ``width``, multiples of ``multiple``."""
    ratio = math.sqrt(height / width)
    sides = (math.sqrt(area) * ratio, math.sqrt(area) / ratio)
    first, second = (max(round(side / multiple), 1) * multiple for side in sides)
    return first, second


def cut(seconds: float, fps: float, lengths: Sequence[int]) -> list[tuple[float, int]]:
    """Start in seconds and frames of the samples that a clip is cut into, longest first."""
    # A clip of exactly n frames may declare a hair less.
    left, place, spans = int(seconds * fps + 0.01), 0, []
    for length in sorted(lengths, reverse=True):
        while left >= length:
            spans.append((place / fps, length))
            left, place = left - length, place + length
    return spans


def _is_synced(notes: Mapping[str, Any], offset: float | None, assume: bool) -> bool:
    """Principle 1 (paper section 3.3): whether a voice passes the filter of audio-driven training."""
    stated = clip_files.note(notes, "has_audio", bool, None)
    if stated is not None:
        return bool(stated)
    confidence = clip_files.note(notes, "sync_conf", float, None)
    if confidence is None:
        return assume
    return confidence >= MIN_SYNC_CONFIDENCE and abs(offset or 0.0) <= MAX_SYNC_OFFSET


def _captions(notes: Mapping[str, Any]) -> dict[str, str]:
    captions = clip_files.note(notes, "captions", dict, {})
    if isinstance(notes.get("caption"), str):
        captions = {"long": notes["caption"], **captions}
    kept = {name: captions[name] for name in ("short", "long") if captions.get(name)}
    if wrong := [name for name, text in kept.items() if not isinstance(text, str)]:
        raise BrokenSampleError(f"notes: captions.{wrong[0]} must be a text")
    return kept


def made_sample(record: SampleRecord, members: dict[str, bytes], notes: Mapping[str, Any]) -> Made:
    """A sample with its notes, which the facts of its record complete."""
    told = {**notes, **asdict(record)}
    members["json"] = json.dumps(told, ensure_ascii=False, sort_keys=True).encode()
    return Made(record=record, members=members)
