"""3D rotary positions of the packed sequence [reference, motion, video, text]."""

from __future__ import annotations

import torch
from torch import Tensor

Grid = tuple[int, int, int]


def grid_ids(grid: Grid, *, first: int = 0, device: torch.device | None = None) -> Tensor:
    """Positions of the tokens of a ``(t, h, w)`` grid, in token order.

    Args:
        grid: Tokens along time, rows and columns.
        first: Temporal position of the first frame.
        device: Where to build them.

    Returns:
        ``(t * h * w, 3)`` fp32.
    """
    frames, rows, columns = (torch.arange(size, device=device, dtype=torch.float32) for size in grid)
    return torch.cartesian_prod(frames + first, rows, columns).view(-1, 3)


def reference_ids(grid: Grid, *, slot: int, device: torch.device | None = None) -> Tensor:
    """Positions of reference tokens: spatial as usual, temporal fixed to ``slot`` for all pictures (paper section 3.2).

    Args:
        grid: ``(pictures, rows, columns)`` of tokens.
        slot: Temporal position; the paper zeroes it.
        device: Where to build them.

    Returns:
        ``(pictures * h * w, 3)`` fp32.
    """
    ids = grid_ids(grid, device=device)
    ids[:, 0] = slot
    return ids


def rope_table(ids: Tensor, *, dims: tuple[int, int, int], theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotation angles.

    Pair ``i`` of an axis of width ``d`` turns by ``position * theta ** (-2 i / d)``; the pairs of time come first, then
    rows, then columns.

    Args:
        ids: ``(L, 3)`` positions.
        dims: Split of the head width over the axes.
        theta: Base of the frequencies.

    Returns:
        ``cos, sin (L, K / 2)`` fp32.
    """
    angles = []
    for axis, dim in enumerate(dims):
        exponents = torch.arange(0, dim, 2, device=ids.device, dtype=torch.float32) / dim
        angles.append(ids[:, axis, None] * theta**-exponents)
    table = torch.cat(angles, dim=1)  # (L, K / 2)
    return table.cos(), table.sin()


def append_text(cos: Tensor, sin: Tensor, text_tokens: int) -> tuple[Tensor, Tensor]:
    """Append rows of the identity rotation: text tokens have no position."""
    rows = (text_tokens, cos.shape[1])
    return torch.cat([cos, cos.new_ones(rows)]), torch.cat([sin, sin.new_zeros(rows)])
