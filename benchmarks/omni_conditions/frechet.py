"""Frechet distance in a fixed feature space: random convolutions of one seed, which need no weights from anywhere.

Heusel et al., GANs Trained by a Two Time-Scale Update Rule, equation 6, with other features than theirs: the figures
compare models here, and nothing else.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

SEED = 20
WIDTHS = (3, 16, 32)
# Pixel frames that a video feature sees.
WINDOW = 7


def _kernels(frames: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(SEED + frames)
    kernels = []
    for before, after in zip(WIDTHS, WIDTHS[1:], strict=False):
        weight = torch.randn(after, before, frames, 4, 4, generator=generator) / (before * frames * 16) ** 0.5
        kernels.append((weight, 0.1 * torch.randn(after, generator=generator)))
    return kernels


def features(videos: Tensor, *, frames: int) -> Tensor:
    """Features ``(N, 32)`` of pieces of ``frames`` frames (1 or an odd number) of ``(B, 3, T, H, W)`` in [-1, 1].

    Each piece goes through two random convolutions with strides of 2 in space and is averaged over its positions.
    """
    count = videos.shape[2] // frames
    pieces = rearrange(videos[:, :, : count * frames], "b c (n f) h w -> (b n) c f h w", f=frames)  # (N, 3, f, H, W)
    kernel = 1 if frames == 1 else 3
    for weight, bias in _kernels(kernel):
        pieces = F.relu(F.conv3d(pieces, weight, bias, stride=(1, 2, 2), padding=(kernel // 2, 1, 1)))
    means: Tensor = pieces.flatten(2).mean(2)
    return means.double()


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Distance of the normal distributions with the mean and covariance of two sets ``(N, D)``, ``(M, D)``.

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``.

    Raises:
        ValueError: sets of other widths, or fewer than two entries.
    """
    if first.ndim != 2 or first.shape[1:] != second.shape[1:] or min(len(first), len(second)) < 2:
        raise ValueError(f"give two sets (N, D) of at least two, got {tuple(first.shape)}, {tuple(second.shape)}")
    first, second = first.double(), second.double()
    one, two = torch.cov(first.T), torch.cov(second.T)
    root = _root(one)
    # The eigenvalues of C1 C2 are those of the symmetric C1^(1/2) C2 C1^(1/2).
    cross = torch.linalg.eigvalsh(root @ two @ root).clamp_min(0).sqrt().sum()
    shift = (first.mean(0) - second.mean(0)).square().sum()
    return float(shift + one.trace() + two.trace() - 2 * cross)


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return root
