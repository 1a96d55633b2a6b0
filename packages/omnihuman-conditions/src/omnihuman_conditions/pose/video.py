"""Frames of a video file, with limits on what an untrusted file may ask for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from omnihuman_conditions.audio.media import FORMATS, MAX_FILE_BYTES, MAX_STREAMS

if TYPE_CHECKING:
    from av.container import InputContainer

MAX_SIDE = 8192


@dataclass(frozen=True, kw_only=True)
class VideoFile:
    """A video that was checked and can be read, any number of times.

    Attributes:
        path: The file.
        fps: Frames per second.
    """

    path: Path
    fps: float

    def frames(self) -> Iterator[np.ndarray]:
        """Frames ``(H, W, 3)`` uint8 RGB, turned upright.

        Raises:
            ValueError: the file is damaged, or its frames change size. One line that names it.
        """
        import av

        size: tuple[int, ...] | None = None
        try:
            with self.path.open("rb") as file, _open(file) as container:
                for frame in container.decode(container.streams.video[0]):
                    picture = frame.to_ndarray(format="rgb24")
                    # The camera was held sideways: quarter turns, counter-clockwise.
                    upright = np.ascontiguousarray(np.rot90(picture, round(frame.rotation / 90) % 4))
                    size = size or upright.shape
                    if upright.shape != size:
                        raise ValueError(f"video changes its size on the way: {self.path}")
                    yield upright
        except av.FFmpegError as error:
            raise ValueError(f"video file is damaged or truncated: {self.path}") from error


def open_video(path: str | Path) -> VideoFile:
    """Check a video file; no frame is decoded.

    Raises:
        ValueError: the file is missing, empty, too large, not a video, without a frame rate, or too wide or high. One
            line that names the file.
    """
    import av

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"video file not found: {path}")
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"video file is empty: {path}")
    if size > MAX_FILE_BYTES:
        raise ValueError(f"video file is larger than {MAX_FILE_BYTES // 1024**3} GB: {path}; cut the part you need")
    try:
        with path.open("rb") as file, _open(file) as container:
            if len(container.streams) > MAX_STREAMS or not container.streams.video:
                raise ValueError(f"video file has no picture track, or more than {MAX_STREAMS} tracks: {path}")
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate or Fraction(0)
            width, height = stream.width, stream.height
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"video file cannot be decoded: {path}") from error
    if not 0 < rate <= 1000:
        raise ValueError(f"video file has no usable frame rate ({float(rate):g}): {path}")
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise ValueError(f"video frames must have sides of at most {MAX_SIDE} pixels, got {width} x {height}: {path}")
    return VideoFile(path=path, fps=float(rate))


def _open(file: BinaryIO) -> InputContainer:
    import av

    return av.open(file, "r", container_options={"format_whitelist": FORMATS})
