"""Any sound file to a mono waveform, with limits on what an untrusted file may ask for."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from torch import Tensor

from omnihuman_core.contracts.extractor import SAMPLE_RATE

if TYPE_CHECKING:
    from av import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer

# The limits and rules below are those of the generation's own reader, so that a file means the same to both.
MAX_SECONDS = 600.0
MIN_SECONDS = 0.04
MAX_FILE_BYTES = 4 * 1024**3
MAX_STREAMS = 16
MIN_SAMPLE_RATE = 1000
MAX_SAMPLE_RATE = 384_000
MAX_CHANNELS = 64

# Containers that hold their own data. Play lists and ffconcat scripts, which name other files, are left out.
FORMATS = "wav,w64,aiff,caf,flac,mp3,aac,ac3,ogg,mov,matroska,avi,mpeg,mpegts,flv,asf,au,amr"
# Their length is estimated from the bit rate, so it says nothing about truncation.
_ESTIMATED = ("mp3", "aac", "ac3", "amr")


def load_waveform(
    source: str | Path | BinaryIO, *, sample_rate: int = SAMPLE_RATE, max_seconds: float = MAX_SECONDS
) -> Tensor:
    """Decode the first sound track of a media file.

    Args:
        source: Path, or a binary file object that can seek.
        sample_rate: Samples per second of the result.
        max_seconds: Longest track accepted.

    Returns:
        ``(samples,)`` float32 in [-1, 1], channels averaged.

    Raises:
        ValueError: the file is missing, empty, too large, not media, truncated, without sound, shorter than 40 ms or
            longer than ``max_seconds``. One line that names the file.
    """
    if not isinstance(source, (str, Path)):
        return _decode(source, getattr(source, "name", "audio stream"), sample_rate, max_seconds)
    path = Path(source)
    try:
        if not path.is_file():
            raise ValueError(f"audio file not found: {path}")
        size = path.stat().st_size
        file = path.open("rb")
    except OSError as error:
        raise ValueError(f"audio file cannot be read: {path} ({error.strerror})") from error
    with file:
        if size == 0:
            raise ValueError(f"audio file is empty: {path}")
        if size > MAX_FILE_BYTES:
            raise ValueError(f"audio file is larger than {MAX_FILE_BYTES // 1024**3} GB: {path}; cut the part you need")
        return _decode(file, path, sample_rate, max_seconds)


def check_waveform(raw: Tensor) -> None:
    """Refuse what no audio extractor takes.

    Raises:
        ValueError: ``raw`` is not ``(B, samples)``, has no sample, or one that is not finite.
    """
    if raw.ndim != 2 or raw.shape[1] < 1:
        raise ValueError(f"waveform must be (B, samples >= 1), got {tuple(raw.shape)}")
    if not torch.isfinite(raw).all():
        raise ValueError("waveform has NaN or infinite samples; check the audio file")


def _decode(file: BinaryIO, name: object, sample_rate: int, max_seconds: float) -> Tensor:
    import av

    _check_riff_size(file, name)
    mp3_says = _mp3_says_length(file)
    too_long = f"audio is longer than {max_seconds:g} s: {name}; cut the part you need"
    limit = int(max_seconds * sample_rate)
    pieces: list[np.ndarray] = []
    total = 0
    try:
        with av.open(file, "r", container_options={"format_whitelist": FORMATS}) as container:
            stream = _sound_track(container, name)
            # Some containers only know the length of the whole file: that of the sound, if there is nothing else.
            whole = (container.duration or 0) / av.time_base
            declared = whole if len(container.streams) == 1 else 0.0
            if stream.duration is not None and stream.time_base is not None:
                declared = float(stream.duration * stream.time_base)
            if (declared or whole) > max_seconds:
                raise ValueError(too_long)
            exact = container.format.name not in _ESTIMATED or mp3_says
            for piece in _mono(container.decode(stream), sample_rate, name):
                total += len(piece)
                if total > limit:
                    raise ValueError(too_long)
                pieces.append(piece)
    except av.FFmpegError as error:
        if total:
            raise ValueError(f"audio file is damaged or truncated after {total / sample_rate:.2f} s: {name}") from error
        raise ValueError(f"audio file is not a sound or video file that can be decoded: {name}") from error
    seconds = total / sample_rate
    if exact and seconds < 0.98 * declared - 0.1:
        raise ValueError(
            f"audio file is truncated: {name} declares {declared:.2f} s of sound but holds {seconds:.2f} s"
        )
    if seconds < MIN_SECONDS:
        raise ValueError(
            f"audio is too short: {name} holds {seconds * 1000:.0f} ms, at least {MIN_SECONDS * 1000:.0f} ms are needed"
        )
    waveform = torch.from_numpy(np.concatenate(pieces))
    if not torch.isfinite(waveform).all():
        raise ValueError(f"audio file holds NaN or infinite samples: {name}")
    return waveform.clamp_(-1, 1)


def _sound_track(container: InputContainer, name: object) -> AudioStream:
    if len(container.streams) > MAX_STREAMS:
        raise ValueError(f"audio file has {len(container.streams)} streams, at most {MAX_STREAMS} are accepted: {name}")
    if not container.streams.audio:
        raise ValueError(f"audio file has no sound track: {name}")
    stream = container.streams.audio[0]
    rate, channels = stream.rate or 0, stream.channels or 0
    if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE or not 1 <= channels <= MAX_CHANNELS:
        raise ValueError(f"audio file has an unusable sound track ({rate} Hz, {channels} channels): {name}")
    return stream


def _mono(frames: Iterator[AudioFrame], sample_rate: int, name: object) -> Iterator[np.ndarray]:
    """Samples of each frame, mixed to one channel at ``sample_rate``."""
    import av

    # Mixed down here: the resampler's own mix to mono adds 3 dB, which would clip.
    resampler = av.AudioResampler(format="fltp", rate=sample_rate)
    for frame in chain(frames, [None]):
        try:
            resampled = resampler.resample(frame)
        except ValueError as error:
            raise ValueError(f"audio file changes its format on the way: {name}") from error
        for piece in resampled:
            yield piece.to_ndarray().astype(np.float32).mean(axis=0)


def _check_riff_size(file: BinaryIO, name: object) -> None:
    """Decoders play a cut WAV file to its end without a word, so its declared size is compared here."""
    head = file.read(12)
    end = file.seek(0, 2)
    file.seek(0)
    declared = int.from_bytes(head[4:8], "little") + 8
    # Writers to a pipe cannot know the size and leave 0 or the largest number.
    known = 8 < declared < 0xFFFF_FFF0
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE" and known and declared - end > 1:
        raise ValueError(f"audio file is truncated: {name} declares {declared} bytes, it holds {end}")


def _mp3_says_length(file: BinaryIO) -> bool:
    """Whether the first frame of an MP3 counts the others, so that its length is no estimate."""
    tag = file.read(10)
    # An ID3 tag gives its size in four bytes of seven bits.
    skipped = 10 + sum(byte << 7 * (3 - i) for i, byte in enumerate(tag[6:10])) if tag[:3] == b"ID3" else 0
    file.seek(skipped)
    frame = file.read(256)
    file.seek(0)
    return any(mark in frame for mark in (b"Xing", b"Info", b"VBRI"))
