"""Errors and tolerances for comparing implementations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def max_error(value: Tensor, truth: Tensor) -> float:
    """Largest absolute difference, in fp64; 0 for empty tensors."""
    if value.shape != truth.shape:
        raise AssertionError(f"shapes differ: {tuple(value.shape)} and {tuple(truth.shape)}")
    difference = (value.detach().double() - truth.detach().double()).abs()
    return float(difference.max()) if difference.numel() else 0.0


def relative_error(value: Tensor, truth: Tensor) -> float:
    """Norm of the difference over the norm of ``truth``, in fp64."""
    if value.shape != truth.shape:
        raise AssertionError(f"shapes differ: {tuple(value.shape)} and {tuple(truth.shape)}")
    value, truth = value.detach().double(), truth.detach().double()
    return float((value - truth).norm() / truth.norm().clamp_min(torch.finfo(torch.float64).tiny))


def same_precision_tolerance(reference: Tensor, truth: Tensor) -> float:
    """Largest absolute error allowed to a fast implementation.

    Twice the error that the plain reference makes at the same precision, plus two roundings of the largest value, since
    a reference may hit a sample exactly by luck.

    Args:
        reference: Result of the plain implementation at the precision under test.
        truth: Its result at a higher precision.
    """
    rounding = torch.finfo(reference.dtype).eps * float(truth.detach().abs().max() if truth.numel() else 0.0)
    return 2.0 * max_error(reference, truth) + 2.0 * rounding


def assert_close(value: Tensor, truth: Tensor, tolerance: float, what: str) -> None:
    """Raise ``AssertionError`` where ``value`` is not finite or farther than ``tolerance`` from ``truth``."""
    assert bool(torch.isfinite(value).all()), f"{what}: holds values that are not finite"
    error = max_error(value, truth)
    assert error <= tolerance, f"{what}: differs by {error:.3g}, allowed is {tolerance:.3g}"


def assert_refused(function: Callable[[], object], what: str) -> None:
    """Raise ``AssertionError`` unless ``function`` raises ``ValueError`` with a message of one line."""
    try:
        function()
    except ValueError as error:
        message = str(error)
    else:
        raise AssertionError(f"{what}: must raise ValueError")
    assert len(message.splitlines()) == 1, f"{what}: the message must be one line, got {message!r}"


def randomize(module: nn.Module, seed: int = 0, scale: float = 1.0) -> nn.Module:
    """Fill every parameter with noise, in place: layers initialised to zero hide most faults.

    Matrices get ``scale / sqrt(fan_in)``; vectors ``1 + 0.1 * noise`` where they were ones, else ``0.1 * noise``.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                noise = noise * scale / parameter[0].numel() ** 0.5
            else:
                noise = noise * 0.1 + float(bool((parameter == 1).all()))
            parameter.copy_(noise)
    return module
