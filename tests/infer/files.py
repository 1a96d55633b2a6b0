"""Small input files, made on the spot."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


def write_picture(path: Path, width: int = 96, height: int = 96) -> Path:
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([255 * columns / width, 255 * rows / height, np.full((height, width), 90)], axis=-1)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def voice(seconds: float, rate: int = 16_000) -> np.ndarray:
    """A hum that swells and fades three times a second, ``(samples,)`` in [-1, 1]."""
    time = np.arange(round(seconds * rate)) / rate
    return 0.3 * np.sin(2 * np.pi * 140 * time) * (0.55 + 0.45 * np.sin(2 * np.pi * 3 * time))


def write_wav(path: Path, samples: np.ndarray, rate: int = 16_000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return path


def transcode(source: Path, target: Path, codec: str, rate: int = 16_000, layout: str = "mono") -> Path:
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        stream = writer.add_stream(codec, rate=rate, layout=layout)
        resampler = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate)
        for frame in [*reader.decode(audio=0), None]:
            for ready in resampler.resample(frame):
                ready.pts = None
                writer.mux(stream.encode(ready))
        writer.mux(stream.encode(None))
    return target


def write_silent_film(path: Path) -> Path:
    """A video without a sound track."""
    with av.open(str(path), "w") as writer:
        stream = writer.add_stream("libx264", rate=Fraction(25))
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for _ in range(5):
            writer.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        writer.mux(stream.encode(None))
    return path
