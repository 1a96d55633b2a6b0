"""Conformance kit of :class:`omnihuman_core.contracts.ops.Ops`: every op against its eager reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from omnihuman_core.contracts.ops import Ops
from omnihuman_core.plugins import resolve_ops
from omnihuman_core.testing.numerics import assert_close, same_precision_tolerance

Outputs = tuple[Tensor, ...]


class OpsConformance:
    """Subclass it and give a fixture ``ops``.

    Outputs and gradients are held to twice the error that the eager reference itself makes at the same precision,
    measured against that reference one precision higher.

    Attributes:
        device: Where the ops run.
        dtypes: Precisions to test.
        head_dim: Width ``K`` of a head.
        hidden_size: Width ``D`` of a token.
    """

    device: str = "cpu"
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    head_dim: int = 16
    hidden_size: int = 48

    def compare(
        self, ops: Ops, call: Callable[..., Outputs], tensors: dict[str, Tensor], fixed: dict[str, Any] | None = None
    ) -> None:
        """Compare ``call(ops, **tensors, **fixed)`` with the eager bundle, forward and backward.

        Args:
            ops: Bundle under test.
            call: Runs one op of a bundle.
            tensors: fp32 inputs that get gradients.
            fixed: Inputs that neither change precision nor get gradients.
        """
        eager, fixed = resolve_ops("eager"), fixed or {}
        for dtype in self.dtypes:
            higher = torch.float64 if dtype == torch.float32 else torch.float32
            # The truth starts from inputs rounded to the precision under test: only the op's own error counts.
            inputs = {name: value.to(self.device, dtype) for name, value in tensors.items()}
            exact = {name: value.to(higher) for name, value in inputs.items()}
            truth = _forward_backward(eager, call, exact, fixed, dtype)
            reference = _forward_backward(eager, call, inputs, fixed, dtype)
            result = _forward_backward(ops, call, inputs, fixed, dtype)
            assert set(result) == set(truth), f"results are {sorted(result)}, the reference gives {sorted(truth)}"
            for name, value in result.items():
                assert value.dtype == reference[name].dtype, f"{name} has dtype {value.dtype} for {dtype} inputs"
                tolerance = same_precision_tolerance(reference[name], truth[name])
                assert_close(value, truth[name], tolerance, f"{name} in {dtype}")

    def test_0_bundle(self, ops: Any) -> None:
        """The bundle is the frozen dataclass of the contract."""
        assert isinstance(ops, Ops)

    def test_1_attention(self, ops: Ops) -> None:
        """Attention, with keys of another length than queries, with and without a mask."""
        heads, width = 3, self.head_dim
        inputs = {name: self.randn(2, length, heads, width) for name, length in (("q", 37), ("k", 53), ("v", 53))}
        mask = torch.arange(53, device=self.device) < torch.tensor([53, 19], device=self.device)[:, None]

        def call(bundle: Ops, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Outputs:
            return (bundle.attention(q, k, v, mask=mask),)

        self.compare(ops, call, inputs, {"mask": None})
        self.compare(ops, call, inputs, {"mask": mask})

    def test_2_qk_norm_rope(self, ops: Ops) -> None:
        """RMSNorm of q and k, then the rotation of interleaved pairs; with one weight, and with one a segment."""
        length, width = 29, self.head_dim
        angles = torch.rand(length, width // 2, generator=self.generator()) * 6
        inputs = {
            "q": self.randn(2, length, 3, width),
            "k": self.randn(2, length, 3, width),
            "q_weight": 1 + 0.1 * self.randn(width),
            "k_weight": 1 - 0.1 * self.randn(width),
        }
        fixed = {"cos": angles.cos().to(self.device), "sin": angles.sin().to(self.device)}

        def call(bundle: Ops, **values: Any) -> Outputs:
            return bundle.qk_norm_rope(**values, eps=1e-6)

        def call_with_segments(bundle: Ops, q_weight: Tensor, k_weight: Tensor, **values: Any) -> Outputs:
            rows: dict[str, Any] = {"q_weight": q_weight.unbind(), "k_weight": k_weight.unbind()}
            return bundle.qk_norm_rope(**rows, **values, eps=1e-6, segments=(23, 6))

        self.compare(ops, call, inputs, fixed)
        two = {"q_weight": 1 + 0.1 * self.randn(2, width), "k_weight": 1 - 0.1 * self.randn(2, width)}
        self.compare(ops, call_with_segments, inputs | two, fixed)

    def test_3_modulated_norm(self, ops: Ops) -> None:
        """LayerNorm with shift and scale, for one segment and for three."""
        for segments in ((31,), (1, 23, 7)):
            inputs = {"x": self.tokens(segments), "shift": self.rows(segments, 1), "scale": self.rows(segments, 2)}

            def call(bundle: Ops, segments: tuple[int, ...] = segments, **values: Tensor) -> Outputs:
                return (bundle.modulated_norm(**values, segments=segments, eps=1e-6),)

            self.compare(ops, call, inputs)

    def test_4_gated_residual(self, ops: Ops) -> None:
        """The gated sum, for one segment and for three."""
        for segments in ((31,), (1, 23, 7)):
            inputs = {
                "residual": self.tokens(segments),
                "x": self.tokens(segments, 1),
                "gate": self.rows(segments, 2),
            }

            def call(bundle: Ops, segments: tuple[int, ...] = segments, **values: Tensor) -> Outputs:
                return (bundle.gated_residual(**values, segments=segments),)

            self.compare(ops, call, inputs)

    def test_5_residual_modulated_norm(self, ops: Ops) -> None:
        """Gated sum and norm in one pass: both results, for one segment and for three."""
        for segments in ((31,), (1, 23, 7)):
            inputs = {
                "residual": self.tokens(segments),
                "x": self.tokens(segments, 1),
                "gate": self.rows(segments, 2),
                "shift": self.rows(segments, 3),
                "scale": self.rows(segments, 4),
            }

            def call(bundle: Ops, segments: tuple[int, ...] = segments, **values: Tensor) -> Outputs:
                return bundle.residual_modulated_norm(**values, segments=segments, eps=1e-6)

            self.compare(ops, call, inputs)

    def test_6_frame_cross_attention(self, ops: Ops) -> None:
        """Cross-attention inside each frame, with the norm of q."""
        width = self.head_dim
        inputs = {
            "q": self.randn(2, 3, 17, 3, width),
            "k": self.randn(2, 3, 5, 3, width, seed=1),
            "v": self.randn(2, 3, 5, 3, width, seed=2),
            "q_weight": 1 + 0.1 * self.randn(width),
        }

        def call(bundle: Ops, **values: Tensor) -> Outputs:
            return (bundle.frame_cross_attention(**values, eps=1e-6),)

        self.compare(ops, call, inputs)

    def generator(self, seed: int = 0) -> torch.Generator:
        """A CPU generator, so that every device gets the same inputs."""
        return torch.Generator().manual_seed(seed)

    def randn(self, *shape: int, seed: int = 0) -> Tensor:
        """Noise of a shape; different shapes draw different noise."""
        return torch.randn(*shape, generator=self.generator(seed + sum(shape)))

    def tokens(self, segments: tuple[int, ...], seed: int = 0) -> Tensor:
        """``(B, L, D)`` for segments of these lengths."""
        return self.randn(2, sum(segments), self.hidden_size, seed=seed)

    def rows(self, segments: tuple[int, ...], seed: int) -> Tensor:
        """``(B, len(segments), D)``, one row a segment."""
        return self.randn(2, len(segments), self.hidden_size, seed=seed)


def _forward_backward(
    ops: Ops, call: Callable[..., Outputs], tensors: dict[str, Tensor], fixed: dict[str, Any], rounding: torch.dtype
) -> dict[str, Tensor]:
    leaves = {name: value.detach().clone().requires_grad_() for name, value in tensors.items()}
    outputs = call(ops, **leaves, **fixed)
    generator = torch.Generator().manual_seed(7)
    # One fixed random direction per output, rounded alike so that it is the same at every precision.
    directions = [torch.randn(value.shape, generator=generator).to(rounding).to(value) for value in outputs]
    total = torch.stack([(value * way).float().sum() for value, way in zip(outputs, directions, strict=True)]).sum()
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    results = {f"output {i}": value.detach() for i, value in enumerate(outputs)}
    for name, gradient in zip(leaves, gradients, strict=True):
        assert gradient is not None, f"no gradient reaches {name}"
        results[f"gradient of {name}"] = gradient
    return results
