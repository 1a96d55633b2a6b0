"""Reads the user's recording: mono at the extractor's rate for the model, untouched frames for the sound track."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from omnihuman_infer.request import RequestError

if TYPE_CHECKING:
    from av import AudioFrame
    from av.container import InputContainer

# Rate that audio extractors take, Hz (contract of the audio feature extractors).
SAMPLE_RATE = 16_000

# Containers that may carry sound. Playlists and scripts (hls, ffconcat) would open other files and stay out.
CONTAINERS = "wav,w64,aiff,mp3,flac,ogg,aac,ac3,amr,caf,mov,mp4,m4a,3gp,matroska,webm,mpegts,avi"

MAX_BYTES = 4 * 2**30
MIN_SECONDS = 0.1
# Full scale is 1: -60 dBFS is below the noise of a quiet room.
SILENCE_PEAK = 1e-3


@contextmanager
def open_sound(path: Path) -> Iterator[InputContainer]:
    """Open a file that has a sound track.

    Raises:
        RequestError: unknown or damaged file, or no sound track.
    """
    import av

    # A file object instead of a name: no protocol handler can be reached through it.
    with path.open("rb") as file:
        try:
            container = cast("InputContainer", av.open(file, options={"format_whitelist": CONTAINERS}))
        except (av.FFmpegError, ValueError):
            raise RequestError(
                f"audio: {path} is not a sound file, or it is damaged; give a WAV, FLAC, MP3, M4A or OGG file"
            ) from None
        try:
            if not container.streams.audio:
                raise RequestError(f"audio: {path} has no sound track; give a file with one")
            yield container
        finally:
            container.close()


def read_sound(
    path: Path, *, max_seconds: float, allow_silence: bool = False, keep_seconds: float | None = None
) -> NDArray[np.float32]:
    """Decode a recording to mono at :data:`SAMPLE_RATE`.

    Args:
        path: Any file with a sound track; the first track counts.
        max_seconds: Longest recording that is accepted.
        allow_silence: Accept a recording whose peak lies below -60 dBFS.
        keep_seconds: Cut the result to this length.

    Returns:
        ``(samples,)`` in [-1, 1].

    Raises:
        RequestError: unknown, damaged, truncated, too short, too long or silent file.
    """
    import av

    if path.stat().st_size > MAX_BYTES:
        raise RequestError(f"audio: {path} is larger than {MAX_BYTES // 2**30} GiB; cut it")
    _check_riff(path)
    pieces: list[NDArray[np.float32]] = []
    decoded = 0
    with open_sound(path) as container:
        stream = container.streams.audio[0]
        declared = _declared_seconds(container)
        _check_length(path, declared, max_seconds)
        resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
        try:
            for frame in container.decode(stream):
                for mono in resampler.resample(frame):
                    pieces.append(mono.to_ndarray().reshape(-1).astype(np.float32, copy=False))
                    decoded += mono.samples
                # The header may lie about the length.
                _check_length(path, decoded / SAMPLE_RATE, max_seconds)
            pieces.extend(
                tail.to_ndarray().reshape(-1).astype(np.float32, copy=False) for tail in resampler.resample(None)
            )
        except (av.FFmpegError, ValueError) as error:
            if isinstance(error, RequestError):
                raise
            raise RequestError(f"audio: {path} is damaged or truncated; give an intact file") from None
    waveform = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    seconds = len(waveform) / SAMPLE_RATE
    if seconds < declared - max(0.5, 0.02 * declared):
        raise RequestError(
            f"audio: {path} is truncated, {seconds:.2f} of {declared:.2f} seconds can be read; give an intact file"
        )
    if seconds < MIN_SECONDS:
        raise RequestError(
            f"audio: {path} lasts {1000 * seconds:.0f} ms, it needs {1000 * MIN_SECONDS:.0f}; give a longer one"
        )
    if not np.isfinite(waveform).all():
        raise RequestError(f"audio: {path} holds samples that are not numbers; export it again")
    if not allow_silence and float(np.abs(waveform).max()) < SILENCE_PEAK:
        raise RequestError(
            f"audio: {path} is silent (peak below -60 dBFS); give a recording with a voice, or pass --allow-silence"
        )
    return waveform if keep_seconds is None else waveform[: round(keep_seconds * SAMPLE_RATE)]


def sound_frames(path: Path, *, rate: int, layout: str, frame_size: int) -> Iterator[AudioFrame]:
    """Decode the sound track once more, as frames for an encoder, at constant memory.

    Args:
        path: A file that :func:`read_sound` accepted.
        rate: Sample rate of the frames, Hz.
        layout: Channel layout of the frames.
        frame_size: Samples in each frame but the last.
    """
    import av

    with open_sound(path) as container:
        resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate, frame_size=frame_size)
        position = 0
        for frame in _and_none(container.decode(container.streams.audio[0])):
            for ready in resampler.resample(frame):
                # Time runs from the first sample, whatever the input's own time stamps say: the model saw it like that.
                ready.pts, ready.time_base = position, Fraction(1, rate)
                position += ready.samples
                yield ready


def track_format(path: Path) -> tuple[int, str]:
    """Sample rate and layout (mono or stereo) to keep for the sound track; rates AAC lacks become 48 kHz."""
    with open_sound(path) as container:
        context = container.streams.audio[0].codec_context
        rates = (96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000)
        rate = context.sample_rate if context.sample_rate in rates else 48_000
        return rate, "mono" if context.layout.nb_channels == 1 else "stereo"


def _and_none(frames: Iterator[AudioFrame]) -> Iterator[AudioFrame | None]:
    yield from frames
    yield None


def _declared_seconds(container: InputContainer) -> float:
    stream = container.streams.audio[0]
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    # Without a length in the header there is nothing to compare the decoded length with.
    return 0.0


def _check_length(path: Path, seconds: float, max_seconds: float) -> None:
    if seconds > max_seconds:
        raise RequestError(
            f"audio: {path} lasts {seconds:.0f} s or more, the limit is {max_seconds:g} s; "
            "cut it or raise --max-seconds"
        )


def _check_riff(path: Path) -> None:
    """FFmpeg reads a truncated WAV without a word: compare the header's size with the file's."""
    with path.open("rb") as file:
        head = file.read(12)
        size = os.fstat(file.fileno()).st_size
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return
    declared = int.from_bytes(head[4:8], "little")
    # Writers to a pipe cannot know the size and put 0 or the maximum.
    if declared in (0, 0xFFFFFFFF):
        return
    if declared + 8 > size + 1:
        raise RequestError(f"audio: {path} is truncated ({size} of {declared + 8} bytes); give an intact file")
