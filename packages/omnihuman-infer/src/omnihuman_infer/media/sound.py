"""Reads the user's recording: mono at the extractor's rate for the model, untouched frames for the sound track."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from omnihuman_infer.request import RequestError

if TYPE_CHECKING:
    from av import AudioFrame
    from av.container import InputContainer

# Rate that audio extractors take, Hz (contract of the audio feature extractors).
SAMPLE_RATE = 16_000

# The limits and rules below are those of the audio extractors' own reader, so that a file means the same to both.
# Containers that hold their own data. Playlists and scripts (hls, ffconcat) would open other files and stay out.
FORMATS = "wav,w64,aiff,caf,flac,mp3,aac,ac3,ogg,mov,matroska,avi,mpeg,mpegts,flv,asf,au,amr"
MAX_FILE_BYTES = 4 * 2**30
MAX_STREAMS = 16
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 1000, 384_000
MAX_CHANNELS = 64
MIN_SECONDS = 0.04
# Their length is estimated from the bit rate, so it says nothing about truncation.
_ESTIMATED = ("mp3", "aac", "ac3", "amr")
# Full scale is 1: -60 dBFS is below the noise of a quiet room.
SILENCE_PEAK = 1e-3


@contextmanager
def open_sound(path: Path) -> Iterator[InputContainer]:
    """Open a file that has a sound track.

    Raises:
        RequestError: unknown or damaged file, no sound track, or one outside the limits.
    """
    import av

    # A file object instead of a name: no protocol handler can be reached through it.
    with path.open("rb") as file:
        try:
            container = cast("InputContainer", av.open(file, options={"format_whitelist": FORMATS}))
        except (av.FFmpegError, ValueError):
            raise RequestError(
                f"audio: {path} is not a sound file, or it is damaged; give a WAV, FLAC, MP3, M4A or OGG file"
            ) from None
        try:
            _check_streams(path, container)
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
        ``(samples,)`` in [-1, 1], channels averaged.

    Raises:
        RequestError: unknown, damaged, truncated, too short, too long or silent file.
    """
    import av

    if path.stat().st_size > MAX_FILE_BYTES:
        raise RequestError(f"audio: {path} is larger than {MAX_FILE_BYTES // 2**30} GiB; cut it")
    with path.open("rb") as file:
        _check_riff(path, file)
        mp3_says = _mp3_says_length(file)
    pieces: list[NDArray[np.float32]] = []
    decoded = 0
    with open_sound(path) as container:
        declared, whole = _declared_seconds(container)
        exact = container.format.name not in _ESTIMATED or mp3_says
        _check_length(path, declared or whole, max_seconds)
        try:
            for piece in _mono(container.decode(container.streams.audio[0])):
                pieces.append(piece)
                decoded += len(piece)
                # The header may lie about the length.
                _check_length(path, decoded / SAMPLE_RATE, max_seconds)
        except (av.FFmpegError, ValueError) as error:
            if isinstance(error, RequestError):
                raise
            raise RequestError(f"audio: {path} is damaged or truncated; give an intact file") from None
    waveform = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    seconds = len(waveform) / SAMPLE_RATE
    if exact and seconds < 0.98 * declared - 0.1:
        raise RequestError(
            f"audio: {path} is truncated, {seconds:.2f} of {declared:.2f} seconds can be read; give an intact file"
        )
    if seconds < MIN_SECONDS:
        raise RequestError(
            f"audio: {path} lasts {1000 * seconds:.0f} ms, it needs {1000 * MIN_SECONDS:.0f}; give a longer one"
        )
    if not np.isfinite(waveform).all():
        raise RequestError(f"audio: {path} holds samples that are not numbers; export it again")
    # Resampling overshoots at steep edges.
    np.clip(waveform, -1, 1, out=waveform)
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


def _mono(frames: Iterator[AudioFrame]) -> Iterator[NDArray[np.float32]]:
    """Samples of each frame, mixed to one channel at :data:`SAMPLE_RATE`."""
    import av

    # Mixed down here, as training does: the resampler's own mix to mono adds 3 dB and clips.
    resampler = av.AudioResampler(format="fltp", rate=SAMPLE_RATE)
    for frame in _and_none(frames):
        for piece in resampler.resample(frame):
            yield piece.to_ndarray().astype(np.float32, copy=False).mean(axis=0)


def _check_streams(path: Path, container: InputContainer) -> None:
    if len(container.streams) > MAX_STREAMS:
        raise RequestError(
            f"audio: {path} has {len(container.streams)} streams, the limit is {MAX_STREAMS}; give the sound alone"
        )
    if not container.streams.audio:
        raise RequestError(f"audio: {path} has no sound track; give a file with one")
    stream = container.streams.audio[0]
    rate, channels = stream.rate or 0, stream.channels or 0
    if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE or not 1 <= channels <= MAX_CHANNELS:
        raise RequestError(
            f"audio: {path} has an unusable sound track ({rate} Hz, {channels} channels); export it again"
        )


def _declared_seconds(container: InputContainer) -> tuple[float, float]:
    """What the headers say of the sound track and of the whole file; 0 where they say nothing."""
    import av

    stream = container.streams.audio[0]
    # Some containers only know the length of the whole file: that of the sound, if there is nothing else.
    whole = (container.duration or 0) / av.time_base
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base), whole
    return (whole if len(container.streams) == 1 else 0.0), whole


def _check_length(path: Path, seconds: float, max_seconds: float) -> None:
    if seconds > max_seconds:
        raise RequestError(
            f"audio: {path} lasts {seconds:.0f} s or more, the limit is {max_seconds:g} s; "
            "cut it or raise --max-seconds"
        )


def _check_riff(path: Path, file: BinaryIO) -> None:
    """FFmpeg reads a truncated WAV without a word: compare the header's size with the file's."""
    head = file.read(12)
    end = file.seek(0, 2)
    declared = int.from_bytes(head[4:8], "little") + 8
    # Writers to a pipe cannot know the size and put 0 or the largest number.
    known = 8 < declared < 0xFFFF_FFF0
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE" and known and declared - end > 1:
        raise RequestError(f"audio: {path} is truncated ({end} of {declared} bytes); give an intact file")


def _mp3_says_length(file: BinaryIO) -> bool:
    """Whether the first frame of an MP3 counts the others, so that its length is no estimate."""
    file.seek(0)
    tag = file.read(10)
    # An ID3 tag gives its size in four bytes of seven bits.
    skipped = 10 + sum(byte << 7 * (3 - i) for i, byte in enumerate(tag[6:10])) if tag[:3] == b"ID3" else 0
    file.seek(skipped)
    frame = file.read(256)
    return any(mark in frame for mark in (b"Xing", b"Info", b"VBRI"))
