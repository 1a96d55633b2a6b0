"""Reads the files of a request, without torch: what is wrong with them is said before any model work."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from omnihuman_infer.media.picture import load_picture
from omnihuman_infer.media.sound import SAMPLE_RATE, read_sound
from omnihuman_infer.request import GenerateRequest, RequestError

MAX_POSE_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Decoded inputs of one request.

    Attributes:
        picture: RGB, upright, at its own size, or None without a picture.
        waveform: ``(samples,)`` mono at 16 kHz, or None without audio.
    """

    picture: Image.Image | None
    waveform: NDArray[np.float32] | None

    def of(self, request: GenerateRequest) -> Inputs:
        """These inputs, where they hold what the request names and nothing else; the files may be gone by now.

        Raises:
            RequestError: a field is wrong, or the request names a file that was not read, or none for one that was, or
                what a program put in here itself is not as the attributes say.
        """
        request.check_values()
        for name, value in (("image", self.picture), ("audio", self.waveform)):
            if (getattr(request, name) is None) != (value is None):
                raise RequestError(f"{name}: the inputs were read for another request; leave them out")
        if self.picture is not None and self.picture.mode != "RGB":
            raise RequestError(f"image: the inputs hold a picture in mode {self.picture.mode}; convert it to RGB")
        if (sound := self.waveform) is not None and (sound.ndim != 1 or not sound.size or sound.dtype != np.float32):
            raise RequestError(
                f"audio: the inputs hold {sound.dtype} samples of shape {sound.shape}; give (samples,) float32"
            )
        return self

    @property
    def sound_seconds(self) -> float | None:
        """Length of the sound, or None without audio."""
        return None if self.waveform is None else len(self.waveform) / SAMPLE_RATE


def read_inputs(request: GenerateRequest, *, writes: bool = True) -> Inputs:
    """Check the request and read picture and sound.

    Poses are read later, by the pose extractor of the model, which alone knows their format.

    Args:
        request: What to generate.
        writes: Check that ``request.out`` can be written; not so where frames are wanted and no file.

    Raises:
        RequestError: one line that names the field and the fix.
    """
    request.validate(writes=writes)
    picture = None if request.image is None else load_picture(request.image)
    waveform = None
    if request.audio is not None:
        waveform = read_sound(
            request.audio,
            max_seconds=request.max_seconds,
            allow_silence=request.allow_silence,
            keep_seconds=request.seconds,
        )
    if request.pose is not None and request.pose.stat().st_size > MAX_POSE_BYTES:
        raise RequestError(f"pose: {request.pose} is larger than {MAX_POSE_BYTES // 2**20} MiB; cut it")
    return Inputs(picture=picture, waveform=waveform)
