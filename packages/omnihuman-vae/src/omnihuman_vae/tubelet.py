"""Starting point of the linear path between a tubelet of pixels and its latents."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def cosine_basis(tubelet: tuple[int, int, int], colours: int, count: int) -> tuple[Tensor, Tensor]:
    """Lowest frequencies of the 3D cosine transform of a tubelet, luminance before colour.

    Video is smooth, so these few vectors carry most of its energy: the linear path reconstructs a blurred video before
    the first step of training.

    Args:
        tubelet: ``(frames, height, width)``.
        colours: Colour channels.
        count: Vectors wanted, at most ``frames * height * width * colours``.

    Returns:
        Orthonormal vectors ``(count, frames * height * width * colours)`` in the order of
        :func:`omnihuman_vae.layers.fold_positions`, and the typical size ``(count,)`` of their coefficients in video.

    Raises:
        ValueError: more vectors are asked for than there are dimensions.
    """
    frames, height, width = tubelet
    dimensions = frames * height * width * colours
    if count > dimensions:
        raise ValueError(f"a tubelet of {dimensions} values has no {count} independent directions")
    # On the CPU even where a model is built on the meta device to be loaded: arithmetic there imports a compiler.
    with torch.device("cpu"):
        # The lowest frequency over the colour channels is luminance.
        directions = _cosines(colours)
        # Colour counts as half a step of frequency more than luminance, so that it follows at once.
        order = sorted(
            (math.hypot(f, y, x) + (0.5 if c else 0.0), f, y, x, c)
            for f in range(frames)
            for y in range(height)
            for x in range(width)
            for c in range(colours)
        )[:count]
        time, rows, columns = (_cosines(size) for size in tubelet)
        vectors = [
            torch.einsum("f,p,q,c->fpqc", time[f], rows[y], columns[x], directions[c]) for _, f, y, x, c in order
        ]
        # Pixels vary by about 0.5 around their mean; what is not the mean of a tubelet is several times smaller.
        mean_size = 0.5 * math.sqrt(frames * height * width)
        sizes = torch.tensor([mean_size if f + y + x == 0 else mean_size / 4 for _, f, y, x, _ in order])
        return torch.stack([vector.flatten() for vector in vectors]), sizes


def _cosines(size: int) -> Tensor:
    """Orthonormal cosine transform (DCT-II) of length ``size``, one frequency per row ``(size, size)``."""
    position = torch.arange(size) + 0.5
    basis = torch.cos(math.pi / size * torch.outer(torch.arange(size), position))
    return F.normalize(basis, dim=1)
