"""Writes H.264 + AAC mp4 files, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from omnihuman_core.checkpoint import create_part
from omnihuman_infer.media.sound import sound_frames, track_format
from omnihuman_infer.provenance import COMMENT, append_xmp

if TYPE_CHECKING:
    from av import AudioFrame
    from av.audio.stream import AudioStream
    from av.video.stream import VideoStream

# Below visible loss on small pictures.
CRF = 16
# Samples in one AAC frame.
AAC_FRAME = 1024


class VideoWriter:
    """Encodes frames as they come, with the sound of a file beside them.

    The file is written under a temporary name in the target's folder and takes the target's name at the end of the
    ``with`` block. An exception or Ctrl-C removes it and leaves an existing target as it was. The bytes depend on
    frames, sound and settings alone: no time stamps are stored and one thread encodes.

    Args:
        path: The mp4 to write; its folder is made if need be.
        width: Pixels, even.
        height: Pixels, even.
        fps: Frames per second.
        sound: A file whose first sound track accompanies the video, cut where the video ends.
        model: Name of the model, for the marking of the file.
    """

    def __init__(
        self, path: Path, *, width: int, height: int, fps: float, sound: Path | None = None, model: str = ""
    ) -> None:
        if width % 2 or height % 2:
            raise ValueError(f"width and height must be even for yuv420p, got {width}x{height}")
        self.path = path
        self._width, self._height = width, height
        self._rate = Fraction(fps).limit_denominator(1001)
        self._sound = sound
        self._model = model
        self._frames = 0

    def __enter__(self) -> Self:
        import av

        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, self._part = create_part(self.path, ".part.mp4")
        os.close(handle)
        try:
            self._container = av.open(
                str(self._part), "w", format="mp4", options={"movflags": "+faststart", "fflags": "+bitexact"}
            )
            self._container.metadata["comment"] = COMMENT
            self._video = self._add_video()
            self._audio: AudioStream | None = None
            if self._sound is not None:
                rate, layout = track_format(self._sound)
                self._audio = self._container.add_stream("aac", rate=rate)
                self._audio.layout = layout
                self._audio.bit_rate = 128_000 if layout == "stereo" else 96_000
                self._pending = sound_frames(self._sound, rate=rate, layout=layout, frame_size=AAC_FRAME)
                self._next: AudioFrame | None = next(self._pending, None)
        except BaseException:
            self._part.unlink(missing_ok=True)
            raise
        return self

    def _add_video(self) -> VideoStream:
        stream = self._container.add_stream("libx264", rate=self._rate)
        stream.width, stream.height, stream.pix_fmt = self._width, self._height, "yuv420p"
        # Of the same frames x264's macroblock tree makes other bytes once in about a hundred times.
        stream.options = {"crf": str(CRF), "preset": "medium", "x264-params": "threads=1:mbtree=0"}
        # Unmarked video is guessed from its size; ours is converted with the BT.601 matrix below.
        context = stream.codec_context
        context.color_range, context.colorspace = 1, 6
        context.color_primaries, context.color_trc = 6, 6
        return stream

    def write(self, frames: NDArray[np.uint8]) -> None:
        """Append ``frames (T, H, W, 3)``, RGB."""
        import av
        from av.video.reformatter import ColorRange, Colorspace

        for picture in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.MPEG)
            frame.pts, frame.time_base = self._frames, 1 / self._rate
            self._container.mux(self._video.encode(frame))
            self._frames += 1
        self._write_sound()

    def _write_sound(self) -> None:
        """Encode sound up to the end of the frames written so far, so that neither stream piles up in memory."""
        if self._audio is None:
            return
        end = int(self._frames / self._rate * self._audio.rate)
        for frame in self._take(end):
            self._container.mux(self._audio.encode(frame))

    def _take(self, end: int) -> Iterator[AudioFrame]:
        while self._next is not None and self._next.pts is not None and self._next.pts + self._next.samples <= end:
            yield self._next
            self._next = next(self._pending, None)

    def _finish(self) -> None:
        if self._audio is not None:
            # One more frame reaches past the last picture; the mp4's edit list cannot cut it, 21 ms of sound may stay.
            last = self._next
            if last is not None and last.pts is not None and last.pts < self._frames / self._rate * self._audio.rate:
                self._container.mux(self._audio.encode(last))
            self._container.mux(self._audio.encode(None))
            self._pending.close()  # type: ignore[attr-defined]
        self._container.mux(self._video.encode(None))
        self._container.close()
        append_xmp(self._part, self._model)
        os.replace(self._part, self.path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._finish()
            else:
                self._container.close()
        finally:
            self._part.unlink(missing_ok=True)
