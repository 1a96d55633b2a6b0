"""Where a prompt comes from when the user gives none (paper section 3.2: text describes the picture and the event)."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image
from torch import Tensor

INSTRUCTION = (
    "Describe this picture in one or two sentences, as the prompt of a video in which the person talks to the camera: "
    "the person, their clothes, what they do, the place and the light. Answer with the description alone."
)
MAX_CHARACTERS = 2000


class CaptionerError(ValueError):
    """A captioner cannot be reached, or gives an answer that is no description."""


@runtime_checkable
class Captioner(Protocol):
    """Describes a picture in one prompt."""

    def caption(self, picture: Tensor) -> str:
        """Prompt for a picture ``(3, H, W)`` in [-1, 1]; never empty."""
        ...


def to_image(picture: Tensor, *, max_side: int) -> Image.Image:
    """8-bit RGB image of a picture ``(3, H, W)`` in [-1, 1], scaled down to ``max_side`` where it is larger.

    Raises:
        ValueError: another shape, or values that are not finite.
    """
    if picture.ndim != 3 or picture.shape[0] != 3 or 0 in picture.shape:
        raise ValueError(f"picture must be (3, H, W), got {tuple(picture.shape)}")
    if not picture.isfinite().all():
        raise ValueError("picture has NaN or infinite values")
    levels = ((picture.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round()
    image = Image.fromarray(levels.permute(1, 2, 0).numpy().astype(np.uint8))  # (H, W, 3)
    image.thumbnail((max_side, max_side))
    return image


def tidy(answer: str) -> str:
    """An answer as one line of at most :data:`MAX_CHARACTERS`.

    Raises:
        CaptionerError: nothing is left.
    """
    caption = " ".join(answer.split())[:MAX_CHARACTERS].strip()
    if not caption:
        raise CaptionerError("captioner gave an empty description; give a prompt, or choose another model")
    return caption
