"""Video, sound and pictures as the members of a sample: mp4 (H.264), flac (16 kHz mono), png.

What is read may come from strangers: containers are named, so that no play list opens other files, and what a file
declares is compared with what the manifest says before anything large is decoded.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnihuman_core.contracts import SAMPLE_RATE
from omnihuman_train.data.shards import BrokenSampleError

# The limits of generation on what a sound track may ask for.
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE, MAX_CHANNELS = 1000, 384_000, 64
# H.264 quality (constant rate factor), 0 is without loss: below what the eye sees, as a model is to learn from it.
QUALITY = 14
_FULL_SCALE = 32767


def encode_video(video: Tensor, fps: float, *, full_colour: bool = False) -> bytes:
    """uint8 frames ``(T, H, W, 3)`` as mp4; the same frames give the same bytes.

    Args:
        video: Frames with even sides.
        fps: Frames per second.
        full_colour: Keep colour at full resolution, which matters for small pictures (4:4:4; few players show it).
    """
    import av

    file = io.BytesIO()
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(file, "w", format="mp4") as container:
        # One thread: x264 gives other bytes with another number of them, and once in about a hundred times with its
        # macroblock tree.
        options = {"crf": str(QUALITY), "preset": "medium", "threads": "1", "x264-params": "mbtree=0"}
        stream: Any = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv444p" if full_colour else "yuv420p"
        for picture in video.numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def decode_video(data: bytes, out: Tensor, *, first: int = 0) -> None:
    """Decode frames of an mp4 into ``out``.

    Args:
        data: The file.
        out: Filled: uint8 ``(T, H, W, 3)``; its sides must be those of the video.
        first: First frame to take.

    Raises:
        BrokenSampleError: no video, another size than ``out``, or fewer frames.
    """
    import av

    target, count = out.numpy(), 0
    try:
        with av.open(io.BytesIO(data), "r", container_options={"format_whitelist": "mov"}) as container:
            stream = container.streams.video[0]
            found, wanted = (stream.height, stream.width), target.shape[1:3]
            if found != wanted:
                raise BrokenSampleError(f"mp4 is {found[0]} x {found[1]}, the manifest says {wanted[0]} x {wanted[1]}")
            # Several samples are decoded at the same time, one thread each.
            stream.codec_context.thread_count = 1
            for number, frame in enumerate(container.decode(stream)):
                if number >= first:
                    target[count] = frame.to_ndarray(format="rgb24")
                    count += 1
                if count == len(target):
                    return
    except (av.FFmpegError, IndexError, ValueError) as error:
        if isinstance(error, BrokenSampleError):
            raise
        raise BrokenSampleError(f"mp4 cannot be decoded after frame {count} ({error})") from error
    raise BrokenSampleError(f"mp4 has {first + count} frames, {first + len(target)} are needed")


def encode_sound(waveform: Tensor) -> bytes:
    """Samples ``(n,)`` in [-1, 1] at 16 kHz as 16-bit flac."""
    import av

    file = io.BytesIO()
    samples = (waveform.clamp(-1, 1) * _FULL_SCALE).round().to(torch.int16).numpy()[None]
    with av.open(file, "w", format="flac") as container:
        stream: Any = container.add_stream("flac", rate=SAMPLE_RATE)
        stream.layout, stream.format = "mono", "s16"
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.rate, frame.pts = SAMPLE_RATE, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def decode_sound(data: bytes, *, samples: int) -> Tensor:
    """Samples ``(samples,)`` of a 16 kHz mono 16-bit flac, float32 in [-1, 1].

    Raises:
        BrokenSampleError: no such sound, or another number of samples.
    """
    import av

    pieces, total = [], 0
    try:
        with av.open(io.BytesIO(data), "r", container_options={"format_whitelist": "flac"}) as container:
            stream = container.streams.audio[0]
            if stream.rate != SAMPLE_RATE or stream.channels != 1:
                raise BrokenSampleError(
                    f"flac has {stream.rate} Hz and {stream.channels} channels, not {SAMPLE_RATE} and 1"
                )
            if stream.format.name != "s16":
                raise BrokenSampleError(f"flac has samples of format {stream.format.name}, not s16")
            for frame in container.decode(stream):
                pieces.append(frame.to_ndarray()[0])
                total += len(pieces[-1])
                if total > samples:
                    break
    except (av.FFmpegError, IndexError) as error:
        raise BrokenSampleError(f"flac cannot be decoded ({error})") from error
    if total != samples:
        raise BrokenSampleError(f"flac has {'more than ' * (total > samples)}{total} samples, the clip {samples}")
    return torch.from_numpy(np.concatenate(pieces).astype(np.float32) / _FULL_SCALE)


def encode_picture(picture: Tensor) -> bytes:
    """uint8 ``(H, W, 3)`` as png."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture.numpy()).save(file, "PNG")
    return file.getvalue()


def decode_picture(data: bytes, *, height: int, width: int) -> Tensor:
    """uint8 ``(H, W, 3)`` of a png.

    Raises:
        BrokenSampleError: no png, or another size.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.size != (width, height):
                raise BrokenSampleError(f"png is {image.height} x {image.width}, the clip {height} x {width}")
            return torch.from_numpy(np.array(image.convert("RGB")))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, BrokenSampleError):
            raise
        raise BrokenSampleError(f"png cannot be decoded ({error})") from error


def mono(frames: Iterator[Any], rate: int) -> Iterator[np.ndarray]:
    """Decoded sound mixed to one channel at ``rate``, piece by piece.

    Raises:
        BrokenSampleError: a sound track outside the limits of generation, one that changes its format on the way, or
            samples that are not numbers.
    """
    import av

    # Mixed down here, as generation does: the resampler's own mix to mono adds 3 dB, which would clip.
    resampler = av.AudioResampler(format="fltp", rate=rate)
    for frame in (*frames, None):
        if frame is not None:
            found, channels = frame.sample_rate, frame.layout.nb_channels
            if not MIN_SAMPLE_RATE <= found <= MAX_SAMPLE_RATE or not 1 <= channels <= MAX_CHANNELS:
                raise BrokenSampleError(f"has an unusable sound track ({found} Hz, {channels} channels)")
        try:
            resampled = resampler.resample(frame)
        except ValueError as error:
            raise BrokenSampleError(f"sound changes its format on the way ({error})") from error
        for piece in resampled:
            samples = piece.to_ndarray().astype(np.float32).mean(axis=0)
            if not np.isfinite(samples).all():
                raise BrokenSampleError("sound holds samples that are not numbers")
            yield samples


def sound_samples(frames: int, fps: float) -> int:
    """Samples of sound behind ``frames`` pixel frames."""
    return round(frames / fps * SAMPLE_RATE)
