"""Noise levels: distributions to train on and schedules to sample with.

The paper gives neither; these are the public choices of rectified-flow models (Stable Diffusion 3, arXiv 2403.03206,
sections 3.1 and 5.3.2; Flux).
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor


def shift(sigma: Tensor, factor: float) -> Tensor:
    """Move noise levels towards noise: ``s' = k s / (1 + (k - 1) s)``.

    Args:
        sigma: Noise levels in [0, 1], any shape.
        factor: ``k > 0``; 1 changes nothing, larger spends more of the levels near noise.
    """
    if factor <= 0:
        raise ValueError(f"shift factor must be positive, got {factor}")
    return factor * sigma / (1 + (factor - 1) * sigma)


def resolution_shift(
    tokens: int, *, base_tokens: int = 256, base_shift: float = 0.5, max_tokens: int = 4096, max_shift: float = 1.15
) -> float:
    """Shift factor for a sequence of a given length: ``exp`` of a line in the number of tokens (as in Flux).

    Args:
        tokens: Video tokens of a sample.
        base_tokens: Length at which the logarithm of the factor is ``base_shift``.
        base_shift: Logarithm of the factor there.
        max_tokens: Length at which it is ``max_shift``.
        max_shift: Logarithm of the factor there.
    """
    if tokens < 1:
        raise ValueError(f"tokens must be at least 1, got {tokens}")
    slope = (max_shift - base_shift) / (max_tokens - base_tokens)
    return math.exp(base_shift + slope * (tokens - base_tokens))


def logit_normal(
    batch: int,
    *,
    mean: float = 0.0,
    std: float = 1.0,
    generator: Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Training levels whose logit is normal: ``sigmoid(mean + std * n)``.

    Args:
        batch: Number of samples ``B``.
        mean: Mean of the logit; positive favours noise.
        std: Standard deviation of the logit.
        generator: Source of randomness.
        device: Where to put the result.

    Returns:
        ``(B,)`` fp32 in (0, 1).
    """
    return torch.sigmoid(mean + std * torch.randn(batch, generator=generator, device=device, dtype=torch.float32))


def uniform(batch: int, *, generator: Generator | None = None, device: torch.device | str | None = None) -> Tensor:
    """Training levels spread evenly; ``(B,)`` fp32 in [0, 1)."""
    return torch.rand(batch, generator=generator, device=device, dtype=torch.float32)


def schedule(num_steps: int, *, shift_factor: float = 1.0, device: torch.device | str | None = None) -> Tensor:
    """Levels to visit when sampling: even steps from 1 to 0, then :func:`shift`.

    Args:
        num_steps: Steps of the sampler, at least 1.
        shift_factor: ``k`` of the shift.
        device: Where to put the result.

    Returns:
        ``(num_steps + 1,)`` fp32, falling from 1 to 0.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    return shift(torch.linspace(1, 0, num_steps + 1, device=device, dtype=torch.float32), shift_factor)
