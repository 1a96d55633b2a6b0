"""The probability path of flow matching: straight lines between data and noise (paper section 3.1).

Sources: flow matching (arXiv 2210.02747), rectified flow (arXiv 2209.03003); the sign of the velocity is the paper's.
"""

from __future__ import annotations

from torch import Tensor


def _per_sample(sigma: Tensor, like: Tensor) -> Tensor:
    """``(B,)`` or a scalar, shaped to broadcast against ``like (B, ...)``."""
    return sigma.to(like.dtype).view(-1, *[1] * (like.ndim - 1))


def interpolate(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Noisy latents ``x_sigma = (1 - sigma) x0 + sigma noise``.

    Args:
        x0: ``(B, ...)`` clean latents.
        noise: ``(B, ...)`` standard normal.
        sigma: ``(B,)`` or scalar noise level in [0, 1].

    Returns:
        ``(B, ...)``.
    """
    level = _per_sample(sigma, x0)
    return (1 - level) * x0 + level * noise


def velocity_target(x0: Tensor, noise: Tensor) -> Tensor:
    """Velocity of the path, ``d x_sigma / d sigma = noise - x0``: what the backbone is trained to predict."""
    return noise - x0


def x0_from_velocity(latents: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """Clean latents that a velocity implies: ``x0 = x_sigma - sigma v``.

    Args:
        latents: ``(B, ...)`` noisy latents.
        velocity: ``(B, ...)``.
        sigma: ``(B,)`` or scalar.
    """
    return latents - _per_sample(sigma, latents) * velocity


def noise_from_velocity(latents: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """Noise that a velocity implies: ``noise = x_sigma + (1 - sigma) v``.

    Args:
        latents: ``(B, ...)`` noisy latents.
        velocity: ``(B, ...)``.
        sigma: ``(B,)`` or scalar.
    """
    return latents + (1 - _per_sample(sigma, latents)) * velocity
