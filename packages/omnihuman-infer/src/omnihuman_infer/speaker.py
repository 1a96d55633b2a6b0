"""Which latent positions guidance acts on, so that one of several people speaks (paper section 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from omnihuman_infer.media.picture import Fit
from omnihuman_infer.request import RequestError

Region = tuple[float, float, float, float]


def region_in_video(region: Region, fit: Fit, picture_size: tuple[int, int]) -> Region:
    """A region in fractions of the picture as fractions of the video, which may show a cut of it.

    Args:
        region: ``(x0, y0, x1, y1)`` in fractions of the picture.
        fit: How the picture becomes the video.
        picture_size: ``(width, height)`` of the picture in pixels.
    """
    x0, y0 = fit.to_video(region[0], region[1], *picture_size)
    x1, y1 = fit.to_video(region[2], region[3], *picture_size)
    return x0, y0, x1, y1


def region_map(region: Region, height: int, width: int) -> Tensor:
    """Map over latent positions: 1 where a position's centre lies in the region, 0 elsewhere.

    The edge is hard: outside, the guided prediction equals the unguided one exactly, not nearly.

    Args:
        region: ``(x0, y0, x1, y1)`` in fractions of the video.
        height: Latent rows ``h``.
        width: Latent columns ``w``.

    Returns:
        ``(1, 1, 1, h, w)`` float32.

    Raises:
        RequestError: no position lies in the region.
    """
    x0, y0, x1, y1 = region
    rows = (torch.arange(height, dtype=torch.float32) + 0.5) / height
    columns = (torch.arange(width, dtype=torch.float32) + 0.5) / width
    inside = ((rows >= y0) & (rows < y1))[:, None] & ((columns >= x0) & (columns < x1))  # (h, w)
    if not inside.any():
        raise RequestError(
            f"speaker_region: covers none of the {height}x{width} positions the model tells apart; make it larger"
        )
    return inside.float()[None, None, None]  # (1, 1, 1, h, w)
