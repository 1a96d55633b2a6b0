"""One tolerance for every kernel: twice the error that plain code makes at the same precision."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.float16]


def gradients(function: Callable[..., object], inputs: Sequence[Tensor], upstream: Sequence[Tensor]) -> list[Tensor]:
    """Outputs and the gradients of all floating inputs, for the given gradients of the outputs."""
    leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
    out = function(*leaves)
    outs = list(out) if isinstance(out, tuple) else [out]
    wanted = [x for x in leaves if x.requires_grad]
    grads = torch.autograd.grad(outs, wanted, [g.to(y.dtype) for g, y in zip(upstream, outs, strict=True)])
    return [y.detach() for y in outs] + list(grads)


def assert_agrees(
    ours: Callable[..., object],
    reference: Callable[..., object],
    inputs: Sequence[Tensor],
    dtype: torch.dtype,
    most: float = float("inf"),
) -> None:
    """Compare ``ours`` at ``dtype`` with ``reference`` in float64, outputs and gradients.

    Args:
        ours: The op.
        reference: Plain code for the same formula, in the precision of its inputs.
        inputs: Floating tensors; they are rounded to ``dtype`` before either runs.
        dtype: Precision under test.
        most: Error of a tensor that is allowed, too, as a share of its norm: where values are far below one, as what
            attention makes of many keys, two roundings of one would let anything pass.
    """
    cast = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
    exact = [x.double() if x.is_floating_point() else x for x in cast]
    device = inputs[0].device
    generator = torch.Generator(device).manual_seed(1)
    with torch.no_grad():
        outs = reference(*exact)
    outs = list(outs) if isinstance(outs, tuple) else [outs]
    upstream = [torch.randn(y.shape, generator=generator, dtype=torch.float64, device=device).to(dtype) for y in outs]
    truth = gradients(reference, exact, upstream)
    plain = gradients(reference, cast, upstream)
    got = gradients(ours, cast, upstream)
    assert len(got) == len(truth)
    for index, (a, b, c) in enumerate(zip(got, plain, truth, strict=True)):
        assert a.shape == c.shape, index
        assert a.dtype == b.dtype, index
        assert a.isfinite().all(), index
        if not c.numel():
            continue
        error, allowed = (a.double() - c).abs().max(), 2 * (b.double() - c).abs().max()
        # Two roundings of the largest value, or of the unit-sized inputs where all of it cancels.
        floor = 2 * torch.finfo(dtype).eps * max(1.0, float(c.abs().max()))
        assert error <= allowed + floor, f"tensor {index}: error {error:.3g}, allowed {allowed:.3g} + {floor:.3g}"
        share = float((a.double() - c).norm() / c.norm()) if most < float("inf") else 0.0
        assert share <= most, f"tensor {index}: error {share:.3g} of its norm, allowed {most:.3g}"
