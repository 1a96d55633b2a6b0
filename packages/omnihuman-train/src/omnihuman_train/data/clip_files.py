"""Clips as people have them: a video, notes in ``NAME.json``, keypoints in ``NAME.pose.safetensors``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnihuman_core.contracts import NUM_KEYPOINTS, SAMPLE_RATE
from omnihuman_train.data.media import mono, sound_samples
from omnihuman_train.data.shards import BrokenSampleError

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
# Containers that hold their own data. Play lists and ffconcat scripts, which name other files, are left out.
FORMATS = "mov,matroska,avi,mpegts,mpeg,flv,asf"
MAX_SIDE, MAX_STREAMS, MAX_SECONDS = 8192, 16, 12 * 3600
MAX_NOTES_BYTES, MAX_POSE_BYTES = 2**20, 2**28


@dataclass(frozen=True, kw_only=True)
class ClipInfo:
    """What a video file declares.

    Attributes:
        seconds: Length.
        height: Pixels.
        width: Pixels.
        has_sound: Whether there is a sound track.
    """

    seconds: float
    height: int
    width: int
    has_sound: bool


def find_clips(folder: Path) -> list[Path]:
    """Video files below ``folder``, in order of their names.

    Raises:
        ValueError: there are none, or no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"--clips {folder}: no such folder")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise ValueError(f"--clips {folder}: no video files here ({', '.join(SUFFIXES)})")
    return found


def probe(path: Path) -> ClipInfo:
    """What the file declares; nothing is decoded.

    Raises:
        BrokenSampleError: no video, or one without a length or outside the limits.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        if stream.duration is not None:
            seconds = float(stream.duration * stream.time_base)
        else:
            seconds = (container.duration or 0) / 1_000_000
        height, width, has_sound = stream.height, stream.width, bool(container.streams.audio)
    if not 0 < seconds <= MAX_SECONDS or not 0 < min(height, width) <= max(height, width) <= MAX_SIDE:
        raise BrokenSampleError(f"declares {height} x {width} pixels and {seconds:g} s, which is outside the limits")
    return ClipInfo(seconds=seconds, height=height, width=width, has_sound=has_sound)


def read_video(path: Path, *, start: float, frames: int, fps: float, size: tuple[int, int]) -> Tensor:
    """Frames at an even rate: at each moment the picture that a player shows, scaled and cropped to its middle.

    Args:
        path: Video file.
        start: First moment in seconds.
        frames: Frames ``T`` to take.
        fps: Frames per second to take.
        size: Height and width of the result.

    Returns:
        uint8 ``(T, H, W, 3)``.

    Raises:
        BrokenSampleError: the file cannot be decoded, is turned, or ends before the span does.
    """
    out = np.empty((frames, *size, 3), dtype=np.uint8)
    count, shown, until = 0, None, 0.0
    for time, length, frame in _frames(path, start):
        # Moments in the middle of a frame: time stamps that are rounded cannot reach the neighbour.
        while count < frames and start + (count + 0.5) / fps < time:
            # A clip may begin late; its first picture is then taken for what comes before it.
            out[count] = _fitted(frame if shown is None else shown, size)
            count += 1
        shown, until = frame, time + length
        if count == frames:
            break
    while shown is not None and count < frames and start + (count + 0.5) / fps < until:
        out[count] = _fitted(shown, size)
        count += 1
    if count < frames:
        raise BrokenSampleError(f"ends {count} frames after {start:g} s, {frames} are needed; cut or declared too long")
    return torch.from_numpy(out)


def read_sound(path: Path, *, start: float, frames: int, fps: float) -> Tensor:
    """Sound of a span, mono at 16 kHz, ``(samples,)`` float32; silence where the track has none.

    Raises:
        BrokenSampleError: the track cannot be decoded.
    """
    waveform = np.zeros(sound_samples(frames, fps), dtype=np.float32)
    with _opened(path) as container:
        origin = _origin(container.streams.video[0])
        stream = container.streams.audio[0]
        _seek(container, stream, origin + start)
        place: int | None = None
        decoded = []
        for frame in container.decode(stream):
            if place is None:
                place = round((float(frame.time or 0) - origin - start) * SAMPLE_RATE)
            decoded.append(frame)
            if float(frame.time or 0) - origin > start + frames / fps:
                break
        sound = np.concatenate(list(mono(iter(decoded), SAMPLE_RATE))) if decoded else waveform[:0]
    first = place or 0
    taken = sound[max(-first, 0) : max(len(waveform) - first, 0)]
    waveform[max(first, 0) : max(first, 0) + len(taken)] = taken
    return torch.from_numpy(waveform)


def read_notes(clip: Path) -> dict[str, Any]:
    """What ``NAME.json`` beside the clip says; nothing where there is none.

    Raises:
        BrokenSampleError: it is no JSON object.
    """
    path = clip.with_suffix(".json")
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > MAX_NOTES_BYTES:
            raise ValueError(f"larger than {MAX_NOTES_BYTES} bytes")
        notes = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BrokenSampleError(f"{path.name} is no JSON ({error})") from error
    if not isinstance(notes, dict):
        raise BrokenSampleError(f"{path.name} must hold a JSON object, got {type(notes).__name__}")
    return notes


def read_pose(clip: Path, *, start: float, frames: int, fps: float, info: ClipInfo, size: tuple[int, int]) -> Tensor:
    """Keypoints of ``NAME.pose.safetensors`` for the frames of a span, in fractions of the cropped picture.

    Returns:
        ``(T, 133, 3)``: x, y, score; 0 where a point is not in the picture.

    Raises:
        BrokenSampleError: not ``keypoints`` ``(n, 133, 3)`` with ``fps`` in the header, or too short.
    """
    from safetensors import SafetensorError, safe_open

    path = pose_path(clip)
    try:
        if path.stat().st_size > MAX_POSE_BYTES:
            raise ValueError(f"larger than {MAX_POSE_BYTES} bytes")
        with safe_open(path, "pt") as file:
            keypoints, header = file.get_tensor("keypoints").float(), file.metadata() or {}
        rate = float(header["fps"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise BrokenSampleError(
            f"{path.name}: needs the tensor 'keypoints' and 'fps' in its header ({error})"
        ) from error
    if keypoints.ndim != 3 or tuple(keypoints.shape[1:]) != (NUM_KEYPOINTS, 3) or not 0 < rate <= 1000:
        raise BrokenSampleError(f"{path.name}: keypoints are {tuple(keypoints.shape)}, not (n, {NUM_KEYPOINTS}, 3)")
    moments = start + (torch.arange(frames) + 0.5) / fps
    numbers = (moments * rate).long()
    if numbers[-1] >= len(keypoints) + 1:
        raise BrokenSampleError(f"{path.name}: {len(keypoints)} frames, the clip needs {int(numbers[-1]) + 1}")
    points = keypoints[numbers.clamp(max=len(keypoints) - 1)].nan_to_num()
    (height, width), (scaled_height, scaled_width) = size, _cover(info.height, info.width, size)
    scale = torch.tensor([scaled_width / width, scaled_height / height])
    points[..., :2] = (points[..., :2] - 0.5) * scale + 0.5
    inside = ((points[..., :2] >= 0) & (points[..., :2] <= 1)).all(-1)
    points[..., 2] = points[..., 2].clamp(0, 1) * inside
    visible: Tensor = points * (points[..., 2:] > 0)
    return visible


def pose_path(clip: Path) -> Path:
    """Where the keypoints of a clip are."""
    return clip.with_suffix(".pose.safetensors")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import av

    try:
        with path.open("rb") as file, av.open(file, "r", container_options={"format_whitelist": FORMATS}) as container:
            if len(container.streams) > MAX_STREAMS or not container.streams.video:
                raise BrokenSampleError(
                    f"has {len(container.streams)} streams, needs a video among at most {MAX_STREAMS}"
                )
            yield container
    except (av.FFmpegError, OSError) as error:
        raise BrokenSampleError(f"cannot be decoded ({error})") from error


def _origin(stream: Any) -> float:
    return float((stream.start_time or 0) * stream.time_base)


def _seek(container: Any, stream: Any, seconds: float) -> None:
    # A second early, for what sound codecs need to get going.
    container.seek(max(int((seconds - 1) / stream.time_base), 0), stream=stream, backward=True)


def _frames(path: Path, start: float) -> Iterator[tuple[float, float, Any]]:
    """Frames from the key frame before ``start``: moment and length in seconds, and the picture."""
    with _opened(path) as container:
        stream = container.streams.video[0]
        origin, rate = _origin(stream), float(stream.average_rate or 25)
        if start > 1:
            _seek(container, stream, origin + start)
        for frame in container.decode(stream):
            if getattr(frame, "rotation", 0):
                raise BrokenSampleError("is stored turned, as telephones do; write it upright first")
            if frame.time is None:
                raise BrokenSampleError("has frames without a time stamp")
            yield float(frame.time) - origin, 1 / rate, frame


def _cover(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """Smallest size of the same shape that covers ``size``."""
    scale = max(size[0] / height, size[1] / width)
    return max(round(height * scale), size[0]), max(round(width * scale), size[1])


def _fitted(frame: Any, size: tuple[int, int]) -> np.ndarray:
    height, width = _cover(frame.height, frame.width, size)
    # Bicubic; the default of the library is fast and blurs.
    picture: np.ndarray = frame.reformat(
        width=width, height=height, format="rgb24", interpolation="BICUBIC"
    ).to_ndarray()
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return picture[top : top + size[0], left : left + size[1]]


def note(notes: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    """One entry of the notes.

    Raises:
        BrokenSampleError: it is of another type.
    """
    value = notes.get(name, default)
    wrong = isinstance(value, bool) != (kind is bool) or not isinstance(value, (int, float) if kind is float else kind)
    if value is not default and wrong:
        raise BrokenSampleError(f"notes: {name} must be {kind.__name__}, got {value!r}")
    return value
