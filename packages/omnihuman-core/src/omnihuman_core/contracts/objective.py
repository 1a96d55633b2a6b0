"""Contract of a training objective: one module and one batch in, one loss and named metrics out.

Stability: 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LossOutput:
    """Result of an objective.

    Attributes:
        loss: Scalar to differentiate.
        metrics: Detached scalars or per-sample vectors to log, by name.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


ModelT_contra = TypeVar("ModelT_contra", contravariant=True)


@runtime_checkable
class Objective(Protocol[ModelT_contra]):
    """Computes the loss of a model on a batch."""

    def __call__(self, model: ModelT_contra, batch: Mapping[str, Any]) -> LossOutput:
        """The loss and its metrics."""
        ...
