"""Solvers of the probability-flow equation ``dx / dsigma = v(x, sigma)`` from noise (sigma 1) to data (sigma 0).

All have the signature of :class:`Sampler`. State is kept in fp32: the steps are small differences of large numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from omnihuman_core.flow.path import x0_from_velocity

Predict = Callable[[Tensor, Tensor], Tensor]
Callback = Callable[[int, Tensor], None]


class Sampler(Protocol):
    """Integrates a velocity field along a schedule."""

    def __call__(self, predict: Predict, noise: Tensor, sigmas: Tensor, *, callback: Callback | None = None) -> Tensor:
        """Latents at the last level of ``sigmas``.

        Args:
            predict: ``(latents (B, ...), sigma (B,)) -> velocity (B, ...)``.
            noise: ``(B, ...)`` latents at the first level.
            sigmas: ``(num_steps + 1,)`` falling levels.
            callback: Called after each step with its number, from 0, and the latents it reached.

        Returns:
            ``(B, ...)`` in the dtype of ``noise``.
        """
        ...


def _check(sigmas: Tensor) -> None:
    if sigmas.ndim != 1 or sigmas.shape[0] < 2 or not bool((sigmas.diff() < 0).all()):
        raise ValueError("sigmas must be at least two falling noise levels, as omnihuman_core.flow.schedule gives them")


def _velocity(predict: Predict, latents: Tensor, sigma: Tensor, dtype: torch.dtype) -> Tensor:
    """Velocity in fp32 at one level for the whole batch."""
    return predict(latents.to(dtype), sigma.to(latents).expand(latents.shape[0])).float()


def sample_euler(predict: Predict, noise: Tensor, sigmas: Tensor, *, callback: Callback | None = None) -> Tensor:
    """Euler's method: one prediction a step, first order. See :class:`Sampler`."""
    _check(sigmas)
    latents = noise.float()
    for step, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        latents = latents + (following - sigma) * _velocity(predict, latents, sigma, noise.dtype)
        if callback is not None:
            callback(step, latents)
    return latents.to(noise.dtype)


def sample_heun(predict: Predict, noise: Tensor, sigmas: Tensor, *, callback: Callback | None = None) -> Tensor:
    """Heun's method: two predictions a step, second order (arXiv 2206.00364, algorithm 1). See :class:`Sampler`."""
    _check(sigmas)
    latents = noise.float()
    for step, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        velocity = _velocity(predict, latents, sigma, noise.dtype)
        guess = latents + (following - sigma) * velocity
        velocity = (velocity + _velocity(predict, guess, following, noise.dtype)) / 2
        latents = latents + (following - sigma) * velocity
        if callback is not None:
            callback(step, latents)
    return latents.to(noise.dtype)


def sample_dpmpp_2m(predict: Predict, noise: Tensor, sigmas: Tensor, *, callback: Callback | None = None) -> Tensor:
    """DPM-Solver++(2M) in flow form: one prediction a step, second order (arXiv 2211.01095, algorithm 2).

    With signal ``1 - sigma`` and half log signal-to-noise ratio ``lambda = log((1 - sigma) / sigma)``, a step is exact
    in the linear part of the equation and takes the clean latents to be linear in ``lambda``. The first and the last
    step, where ``lambda`` is infinite at one end, are of first order. See :class:`Sampler`.
    """
    _check(sigmas)
    latents = noise.float()
    weights = _dpmpp_2m_weights(sigmas)
    previous: Tensor | None = None
    for step in range(len(sigmas) - 1):
        velocity = _velocity(predict, latents, sigmas[step], noise.dtype)
        x0 = x0_from_velocity(latents, velocity, sigmas[step])
        estimate = x0
        if previous is not None and math.isfinite(weights[step]):
            estimate = x0 + weights[step] * (x0 - previous)
        kept = sigmas[step + 1] / sigmas[step]
        latents = kept * latents + (1 - kept) * estimate
        previous = x0
        if callback is not None:
            callback(step, latents)
    return latents.to(noise.dtype)


def _dpmpp_2m_weights(sigmas: Tensor) -> list[float]:
    """Weight of the change of ``x0`` over the step before, for every step; not finite where the step has none.

    Computed once and on the CPU: not every device has float64, and a step would have to wait for its device.
    """
    levels = sigmas.cpu().double()
    log_ratio = torch.log1p(-levels) - torch.log(levels)  # -inf at sigma 1, inf at sigma 0
    widths = log_ratio.diff()
    weights = widths[1:] / widths[:-1] / 2
    # Where a width is infinite, the quotient may be zero.
    weights[~(widths[1:].isfinite() & widths[:-1].isfinite())] = math.nan
    return [math.nan, *weights.float().tolist()]


SAMPLERS: dict[str, Sampler] = {"euler": sample_euler, "heun": sample_heun, "dpmpp_2m": sample_dpmpp_2m}
"""The samplers by the name that a model's settings give."""
