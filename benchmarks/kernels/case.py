"""One op at one shape: what is checked and measured of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from omnihuman_kernels import performance

Function = Callable[..., object]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One op at one shape.

    Attributes:
        op: Name in reports.
        shape: What was run, for people.
        make: Inputs on the GPU, in float32 or bfloat16; the first ``differentiable`` of them get gradients.
        ours: The op.
        reference: The formula in the precision of its inputs.
        cost: Forward and backward cost.
        bound: ``memory`` or ``matrix``: what the share of the floor is of.
        small: Inputs for the comparison with float64, where ``make`` is too large for it; None uses ``make``.
        part: Makes the op restricted to a part of a real-size input, and the inputs of that part, for a second
            comparison.
        peers: Other implementations by name.
        eager: What is timed plain and compiled, as a user without kernels has it; None for neither.
        compiled: What is compiled in its place, where the compiler makes less of ``eager`` than of other plain code.
        keep: Inputs that stay float32.
        directions: Which of forward and backward to time.
        targets: (direction, peer or "copy") to the least ratio and the aim.
    """

    op: str
    shape: str
    make: Callable[[], list[Tensor]]
    ours: Function
    reference: Function
    cost: tuple[performance.Cost, performance.Cost]
    bound: str
    differentiable: int
    small: Callable[[], list[Tensor]] | None = None
    part: Callable[[], tuple[Function, list[Tensor]]] | None = None
    peers: dict[str, Function] = field(default_factory=dict)
    eager: Function | None = None
    compiled: Function | None = None
    keep: Sequence[int] = ()
    directions: tuple[str, ...] = ("forward", "backward")
    targets: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)


class NotInstalled(Exception):
    """A peer that this machine lacks."""


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda")
