"""Reads the user's picture and fits it to the sizes a model can make."""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from omnihuman_infer.request import RequestError

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_BYTES = 128 * 2**20
MAX_PIXELS = 64_000_000
MIN_SIDE = 16

# A float, or an array or tensor of floats.
NumberT = TypeVar("NumberT", bound=Any)

# What Pillow's parsers raise on damaged bytes; they do not turn the errors of their arithmetic into their own. Where
# the program makes errors of warnings, those on damaged metadata are among them.
_DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, ArithmeticError, LookupError, TypeError, AttributeError, AssertionError,
    RuntimeError, UserWarning, struct.error, zlib.error,
)  # fmt: skip

# What undoes each EXIF orientation but 1, which is upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# A transparent picture is laid on mid-grey: black or white would bleed into the hair's edge.
BACKGROUND = (128, 128, 128)


def load_picture(path: Path) -> Image.Image:
    """Read a picture as RGB, turned upright.

    Handles EXIF orientation (what cannot be read of it counts as upright), transparency (over mid-grey), palettes,
    greyscale of 8 and 16 bits and CMYK. The first frame of an animation counts. Pillow's warnings on metadata and on
    sizes are left to the program: what shows them is one setting for all threads.

    Raises:
        RequestError: not a PNG, JPEG or WEBP, truncated, too small, too large in bytes or in pixels.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise RequestError(
            f"image: {path} has {size / 2**20:.0f} MiB, the limit is {MAX_BYTES // 2**20}; make it smaller"
        )
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            # The header alone gives the size: a bomb is refused before one pixel of it is decoded.
            if width * height > MAX_PIXELS:
                raise RequestError(
                    f"image: {path} has {width}x{height} pixels, the limit is {MAX_PIXELS // 10**6} million; "
                    "make it smaller"
                )
            if min(width, height) < MIN_SIDE:
                raise RequestError(
                    f"image: {path} has {width}x{height} pixels, each side needs at least {MIN_SIDE}; "
                    "give a larger picture"
                )
            image.load()
            return _to_rgb(_turned_upright(image))
    except UnidentifiedImageError:
        raise RequestError(f"image: {path} is not a PNG, JPEG or WEBP picture; convert it to one of them") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise RequestError(
            f"image: {path} has too many pixels, the limit is {MAX_PIXELS // 10**6} million; make it smaller"
        ) from None
    except _DAMAGE as error:
        if isinstance(error, RequestError):
            raise
        reason = " ".join(str(error).split())
        raise RequestError(f"image: {path} is damaged or truncated ({reason}); give an intact file") from None


def _turned_upright(image: Image.Image) -> Image.Image:
    try:
        # This entry alone: the rest of the metadata is of no use here and may be damaged.
        turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _DAMAGE:
        # The pixels are whole: a picture that does not say how it was held is taken as it is stored.
        turn = None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        # PIL clips 16-bit greyscale to 255 on conversion: scale it.
        wide = np.asarray(image, dtype=np.float64)
        return Image.fromarray(np.clip(wide / 257.0, 0, 255).round().astype(np.uint8)).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        rgba = image.convert("RGBA")
        paper = Image.new("RGBA", rgba.size, (*BACKGROUND, 255))
        return Image.alpha_composite(paper, rgba).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a picture is brought to a model's size: cut ``box`` out, scale it to ``width`` x ``height``.

    Attributes:
        width: Pixels of the video, a multiple of the model's.
        height: Pixels of the video, a multiple of the model's.
        box: ``(left, top, right, bottom)`` in pixels of the picture, inside it and centred.
    """

    width: int
    height: int
    box: tuple[float, float, float, float]

    def to_video(self, x: NumberT, y: NumberT, picture_width: int, picture_height: int) -> tuple[NumberT, NumberT]:
        """Fractions of the picture to fractions of the video (outside [0, 1] where the cut removed them).

        Works on numbers and on arrays of them.
        """
        left, top, right, bottom = self.box
        return (x * picture_width - left) / (right - left), (y * picture_height - top) / (bottom - top)


def fit_size(width: int, height: int, *, area: int, max_aspect: float, size_multiple: int) -> Fit:
    """The size nearest the picture's aspect that a model can make, and the smallest centred cut that gives it.

    Among all sides that are multiples of ``size_multiple``, with an area within a third of ``area``, the one is taken
    whose aspect is nearest the picture's; a difference in area counts a quarter as much (both as ratios). Beyond
    ``max_aspect`` the picture is cut to ``max_aspect``. The cut is minimal: one pair of sides always stays whole.

    Args:
        width: Pixels of the picture.
        height: Pixels of the picture.
        area: Target ``H * W`` of the video.
        max_aspect: Largest ratio of the longer to the shorter side, at least 1.
        size_multiple: Both sides are multiples of this.

    Raises:
        ValueError: a size is not positive.
    """
    if min(width, height, area, size_multiple) < 1 or max_aspect < 1:
        raise ValueError(
            f"sizes must be positive and max_aspect at least 1, got {width}x{height}, area {area}, "
            f"max_aspect {max_aspect}, size_multiple {size_multiple}"
        )
    out_width, out_height = _nearest_size(width / height, area=area, max_aspect=max_aspect, size_multiple=size_multiple)
    scale = min(width / out_width, height / out_height)
    # Rounding may carry the whole side past the picture's edge, which Pillow refuses.
    cut_width, cut_height = min(out_width * scale, width), min(out_height * scale, height)
    left, top = (width - cut_width) / 2, (height - cut_height) / 2
    return Fit(width=out_width, height=out_height, box=(left, top, left + cut_width, top + cut_height))


def free_size(aspect: float, *, area: int, max_aspect: float, size_multiple: int) -> Fit:
    """The size of a video without a picture: the one nearest ``aspect``, width over height, as of :func:`fit_size`.

    Raises:
        RequestError: the model makes no such aspect.
    """
    if max(aspect, 1 / aspect) > max_aspect * (1 + 1e-9):
        raise RequestError(
            f"aspect: this model makes {1 / max_aspect:.3g} to {max_aspect:.3g}, width over height, got {aspect:.3g}"
        )
    width, height = _nearest_size(aspect, area=area, max_aspect=max_aspect, size_multiple=size_multiple)
    return Fit(width=width, height=height, box=(0.0, 0.0, float(width), float(height)))


def _nearest_size(aspect: float, *, area: int, max_aspect: float, size_multiple: int) -> tuple[int, int]:
    """Width and height; see :func:`fit_size`."""
    wanted = min(max(aspect, 1 / max_aspect), max_aspect)
    limit = max(1, math.ceil(math.sqrt(area * max_aspect) / size_multiple) + 1)
    best: tuple[float, int, int] | None = None
    for rows in range(1, limit + 1):
        for columns in range(1, limit + 1):
            h, w = rows * size_multiple, columns * size_multiple
            if max(h / w, w / h) > max_aspect * (1 + 1e-9):
                continue
            excess = abs(math.log(h * w / area))
            # A model much smaller than one multiple a side still gets its nearest size.
            penalty = 10.0 if excess > math.log(4 / 3) else 0.0
            cost = abs(math.log(w / h / wanted)) + 0.25 * excess + penalty
            if best is None or cost < best[0] - 1e-12:
                best = (cost, h, w)
    assert best is not None, "a square always passes the aspect test"
    _, height, width = best
    return width, height


def resize(picture: Image.Image, fit: Fit) -> NDArray[np.uint8]:
    """Cut and scale ``picture``: ``(H, W, 3)``, 0 to 255."""
    scaled = picture.resize((fit.width, fit.height), Image.Resampling.LANCZOS, box=fit.box)
    return np.asarray(scaled, dtype=np.uint8)
