"""Whether an attention backend computes attention: outputs and gradients against the formula at higher precision."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from omnihuman_core.contracts import Attention
from omnihuman_core.ops import softmax_attention
from omnihuman_core.testing.numerics import max_error, same_precision_tolerance

# The formula holds all scores, so longer sequences are compared whole at this odd length, and in part at their own.
WHOLE = 311
ROWS = 64
# In float32 torch's own fused backward for a CPU was seen at 1.8 times what the kit allows. A kernel that computes
# something else is wrong by orders of magnitude.
SLACK = 2.0
HEADS = 2


@dataclass(frozen=True, kw_only=True)
class Case:
    """One shape to compare and to time.

    Attributes:
        batch: Batch size ``B``.
        length: Queries and keys ``L``.
        heads: Heads ``N``.
        head_dim: Width ``K`` of a head.
        masked: Whether there is a key mask.
    """

    batch: int
    length: int
    heads: int
    head_dim: int
    masked: bool

    def inputs(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, ``(B, L, N, K)``."""
        generator = torch.Generator(device).manual_seed(self.length)
        shape = (self.batch, self.length, self.heads, self.head_dim)
        q, k, v = (torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in range(3))
        return q, k, v

    def mask(self, device: torch.device) -> Tensor | None:
        """``(B, L)``: an eighth of the keys, at the end as padded text is, do not count; fewer in later samples."""
        if not self.masked:
            return None
        missing = (self.length // 8) // torch.arange(1, self.batch + 1, device=device)
        return torch.arange(self.length, device=device) < (self.length - missing)[:, None]


def disagreement(
    attention: Attention, case: Case, inputs: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, *, backward: bool
) -> str:
    """What is wrong with ``attention`` at a shape; an empty string if nothing is.

    Allowed is :data:`SLACK` times what the conformance kit of ops allows: twice the error of the formula at the
    same precision.

    Args:
        attention: To be judged.
        case: The shape.
        inputs: What :meth:`Case.inputs` made.
        mask: What :meth:`Case.mask` made.
        backward: Whether gradients are compared, too.
    """
    whole = replace(case, batch=2, length=min(case.length, WHOLE), heads=min(case.heads, HEADS))
    problem = _compare_whole(attention, whole, inputs[0].device, inputs[0].dtype, backward=backward)
    return problem or _compare_rows(attention, *inputs, mask)


def _compare_whole(
    attention: Attention, case: Case, device: torch.device, dtype: torch.dtype, *, backward: bool
) -> str:
    inputs, mask = case.inputs(device, dtype), case.mask(device)
    if mask is not None:
        # Holes, too, and one sample that has nearly all its keys.
        mask = mask & (torch.arange(case.length, device=device) % 5 != 3)
    higher = _higher(dtype)
    truth = _results(softmax_attention, inputs, mask, higher, backward=backward)
    reference = _results(softmax_attention, inputs, mask, dtype, backward=backward)
    results = _results(attention, inputs, mask, dtype, backward=backward)
    names = ("output", "gradient of q", "gradient of k", "gradient of v")
    for name, result, same, exact in zip(names, results, reference, truth, strict=False):
        problem = _wrong(name, result, same, exact)
        if problem:
            return problem
    return ""


def _compare_rows(attention: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> str:
    """Some queries of some heads at the full shape: every query sees all keys, so they can stand for the others."""
    length = q.shape[1]
    rows = torch.linspace(0, length - 1, min(length, ROWS), device=q.device).long()
    with torch.no_grad():
        result = attention(q, k, v, mask=mask)
        if result.shape != q.shape:
            return f"the output has shape {tuple(result.shape)}, not {tuple(q.shape)}"
        some = [x[:, :, :HEADS] for x in (q[:, rows], k, v)]
        reference = softmax_attention(*some, mask=mask)
        truth = softmax_attention(*(x.to(_higher(q.dtype)) for x in some), mask=mask)
    return _wrong(f"output at length {length}", result[:, rows, :HEADS], reference, truth)


def _results(
    attention: Attention, inputs: tuple[Tensor, ...], mask: Tensor | None, dtype: torch.dtype, *, backward: bool
) -> tuple[Tensor, ...]:
    q, k, v = (x.detach().to(dtype, copy=True).requires_grad_(backward) for x in inputs)
    out = attention(q, k, v, mask=mask)
    if not backward:
        return (out,)
    generator = torch.Generator().manual_seed(7)
    # Rounded to the precision under test, so that it is the same at every precision.
    direction = torch.randn(out.shape, generator=generator).to(inputs[0]).to(out)
    return (out.detach(), *torch.autograd.grad(out, (q, k, v), direction))


def _wrong(name: str, result: Tensor, reference: Tensor, truth: Tensor) -> str:
    if result.dtype != reference.dtype or result.shape != truth.shape:
        return f"{name} is {result.dtype} {tuple(result.shape)}, not {reference.dtype} {tuple(truth.shape)}"
    if not bool(torch.isfinite(result).all()):
        return f"{name} holds values that are not finite"
    error, allowed = max_error(result, truth), SLACK * same_precision_tolerance(reference, truth)
    return f"{name} differs by {error:.2g}, allowed is {allowed:.2g}" if error > allowed else ""


def _higher(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float32 else torch.float32
