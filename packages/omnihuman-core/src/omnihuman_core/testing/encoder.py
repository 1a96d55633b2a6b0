"""Conformance kit of condition encoders (:mod:`omnihuman_core.contracts.encoder`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from omnihuman_core.contracts.encoder import ConditionEncoder
from omnihuman_core.testing.numerics import assert_close, max_error
from omnihuman_core.testing.registration import check_registrable


class ConditionEncoderConformance:
    """Subclass it and give the fixtures ``encoder`` (fp32, ``eval`` mode) and ``features`` (two samples or more).

    Features are a tensor, or a dataclass of tensors with the batch first. Layers that start at zero hide faults: pass
    the encoder through :func:`omnihuman_core.testing.numerics.randomize` first.

    Attributes:
        tolerance: Largest difference where two computations must agree.
    """

    tolerance: float = 1e-5

    def test_0_registrable(self, encoder: Any) -> None:
        """The encoder can be rebuilt from its written configuration, and follows the protocol."""
        assert isinstance(encoder, ConditionEncoder)
        check_registrable(encoder)

    def test_1_samples_are_independent(self, encoder: ConditionEncoder[Any, Any], features: Any) -> None:
        """Invariant 1: a sample's condition in a batch is its condition alone."""
        with torch.no_grad():
            batch = encoder.encode(features)
            for i in range(batch.batch_size):
                one = slice(i, i + 1)
                alone = tensors(encoder.encode(map_tensors(features, lambda value, one=one: value[one])))  # type: ignore[misc]
                for name, value in tensors(batch).items():
                    assert_close(alone[name], value[one], self.tolerance, f"{name} of sample {i} alone")

    def test_2_null(self, encoder: ConditionEncoder[Any, Any], features: Any) -> None:
        """Invariant 2: the null has the shapes, dtypes and device of ``like`` and does not depend on its values."""
        with torch.no_grad():
            like = encoder.encode(features)
            null = tensors(encoder.null(like))
            others = (tensors(encoder.null(like.map(_spoiled))), tensors(encoder.null(like.map(torch.zeros_like))))
        assert set(null) == set(tensors(like)), f"the null has {sorted(null)}, a condition {sorted(tensors(like))}"
        for name, value in tensors(like).items():
            made = null[name]
            for aspect in ("shape", "dtype", "device"):
                got, want = getattr(made, aspect), getattr(value, aspect)
                assert got == want, f"the null's {name} has {aspect} {got}, a condition {want}"
            assert all(torch.equal(made, other[name]) for other in others), f"the null's {name} depends on values"

    def test_3_null_is_told_apart(self, encoder: ConditionEncoder[Any, Any], features: Any) -> None:
        """Invariant 3: no sample of a real condition looks like the null."""
        with torch.no_grad():
            real = encoder.encode(features)
            null = tensors(encoder.null(real))
        for i in range(real.batch_size):
            differences = [max_error(value[i], null[name][i]) for name, value in tensors(real).items()]
            assert max(differences) > self.tolerance, f"the condition of sample {i} equals the null"

    def test_4_deterministic(self, encoder: ConditionEncoder[Any, Any], features: Any) -> None:
        """Invariant 4: encoding twice in ``eval`` mode gives the same."""
        with torch.no_grad():
            first, second = tensors(encoder.encode(features)), tensors(encoder.encode(features))
        for name, value in first.items():
            assert torch.equal(value, second[name]), f"{name} changes from one encoding to the next"


def tensors(holder: Any) -> dict[str, Tensor]:
    """Tensors of a dataclass by field; a tensor alone is called ``values``; nothing for anything else."""
    if isinstance(holder, Tensor):
        return {"values": holder}
    if not is_dataclass(holder):
        return {}
    found = {f.name: getattr(holder, f.name) for f in fields(holder)}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def map_tensors(holder: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``function`` to a tensor or to the tensors of a dataclass; anything else comes back as it is."""
    if isinstance(holder, Tensor):
        return function(holder)
    if not is_dataclass(holder) or isinstance(holder, type):
        return holder
    return replace(holder, **{name: function(value) for name, value in tensors(holder).items()})


def _spoiled(value: Tensor) -> Tensor:
    # Not-a-number survives a multiplication by zero, so "like * 0" does not pass for a null.
    return ~value if value.dtype == torch.bool else torch.full_like(value, float("nan"))
