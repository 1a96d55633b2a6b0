"""Any sound file to a mono waveform, with limits on what an untrusted file may ask for."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

SAMPLE_RATE = 16000
MAX_SECONDS = 600.0
MIN_SECONDS = 0.04
MAX_FILE_BYTES = 2 * 1024**3
MAX_STREAMS = 16
MAX_SAMPLE_RATE = 384_000
MAX_CHANNELS = 64

# Containers that hold their own data. Play lists and ffconcat scripts, which name other files, are left out.
FORMATS = "wav,w64,aiff,caf,flac,mp3,aac,ogg,mov,matroska,avi,mpeg,mpegts,flv,asf,au,amr"


def load_waveform(
    source: str | Path | BinaryIO, *, sample_rate: int = SAMPLE_RATE, max_seconds: float = MAX_SECONDS
) -> Tensor:
    """Decode the first sound track of a media file.

    Args:
        source: Path, or a binary file object that can seek.
        sample_rate: Samples per second of the result.
        max_seconds: Longest track accepted.

    Returns:
        ``(samples,)`` float32 in [-1, 1], channels averaged by the resampler.

    Raises:
        ValueError: the file is missing, empty, too large, not media, truncated, without sound, shorter than 40 ms or
            longer than ``max_seconds``. One line that names the file.
    """
    if not isinstance(source, (str, Path)):
        return _decode(source, getattr(source, "name", "audio stream"), sample_rate, max_seconds)
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"audio file not found: {path}")
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"audio file is empty: {path}")
    if size > MAX_FILE_BYTES:
        raise ValueError(f"audio file is larger than {MAX_FILE_BYTES // 1024**3} GB: {path}; cut the part you need")
    try:
        file = path.open("rb")
    except OSError as error:
        raise ValueError(f"audio file cannot be read: {path} ({error.strerror})") from error
    with file:
        return _decode(file, path, sample_rate, max_seconds)


def _decode(file: BinaryIO, name: object, sample_rate: int, max_seconds: float) -> Tensor:
    import av

    too_long = f"audio is longer than {max_seconds:g} s: {name}; cut the part you need"
    samples: list[np.ndarray] = []
    total = 0
    try:
        with av.open(file, "r", container_options={"format_whitelist": FORMATS}) as container:
            _check_streams(container, name)
            stream = container.streams.audio[0]
            seconds = _declared_seconds(container, stream)
            if seconds is not None and seconds > max_seconds:
                raise ValueError(too_long)
            resampler = av.AudioResampler(format="flt", layout="mono", rate=sample_rate)
            for frame in container.decode(stream):
                for piece in resampler.resample(frame):
                    total += piece.samples
                    if total > max_seconds * sample_rate:
                        raise ValueError(too_long)
                    samples.append(piece.to_ndarray().reshape(-1)[: piece.samples])
            for piece in resampler.resample(None):
                total += piece.samples
                samples.append(piece.to_ndarray().reshape(-1)[: piece.samples])
    except av.FFmpegError as error:
        if total:
            raise ValueError(f"audio file is damaged or truncated after {total / sample_rate:.2f} s: {name}") from error
        raise ValueError(f"audio file is not a sound or video file that can be decoded: {name}") from error
    if seconds is not None and total < 0.5 * seconds * sample_rate:
        raise ValueError(
            f"audio file is truncated: {name} declares {seconds:.2f} s of sound but holds {total / sample_rate:.2f} s"
        )
    if total < MIN_SECONDS * sample_rate:
        raise ValueError(
            f"audio is too short: {name} holds {total / sample_rate * 1000:.0f} ms, "
            f"at least {MIN_SECONDS * 1000:.0f} ms are needed"
        )
    waveform = torch.from_numpy(np.concatenate(samples).astype(np.float32))
    if not torch.isfinite(waveform).all():
        raise ValueError(f"audio file holds NaN or infinite samples: {name}")
    return waveform.clamp_(-1, 1)


def _check_streams(container: object, name: object) -> None:
    streams = container.streams  # type: ignore[attr-defined]
    if len(streams) > MAX_STREAMS:
        raise ValueError(f"audio file has {len(streams)} streams, at most {MAX_STREAMS} are accepted: {name}")
    if not streams.audio:
        raise ValueError(f"audio file has no sound track: {name}")
    stream = streams.audio[0]
    rate, channels = stream.rate or 0, stream.channels or 0
    if not 1000 <= rate <= MAX_SAMPLE_RATE or not 1 <= channels <= MAX_CHANNELS:
        raise ValueError(f"audio file has an unusable sound track ({rate} Hz, {channels} channels): {name}")


def _declared_seconds(container: object, stream: object) -> float | None:
    if stream.duration is not None and stream.time_base is not None:  # type: ignore[attr-defined]
        return float(stream.duration * stream.time_base)  # type: ignore[attr-defined]
    duration = container.duration  # type: ignore[attr-defined]
    return None if duration is None else float(duration) / 1_000_000
