"""Choosing the attention of a model, once, when the model is built.

``auto`` goes by measured times. A call looks its own length up in the finished plan by comparing two integers, which a
compiled graph turns into a guard; nothing else is decided later than construction.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from omnihuman_core.contracts.ops import Attention, AttentionSupport, Ops
from omnihuman_core.ops.attention import attention as sdpa
from omnihuman_core.ops.attention_backends import (
    Target,
    attention_backend,
    backend_names,
    describe_target,
    dtype_name,
    support_on,
    why_not,
)
from omnihuman_core.ops.attention_table import AttentionRow, known_rows
from omnihuman_core.plugins import resolve_ops

AUTO = "auto"
# A backend that reaches this share of the best speed is as good as the best; then the plainer one is taken.
GOOD_ENOUGH = 0.98
# A time says nothing about sequences more than this many times as long or as short.
REACH = 2.0


@dataclass(frozen=True, kw_only=True, order=True)
class Bucket:
    """Calls that one measured time stands for: width of a head, whether there is a key mask, length of the sequence."""

    head_dim: int
    masked: bool
    length: int


@dataclass(frozen=True, kw_only=True)
class AttentionChoice:
    """The attention of a model.

    Attributes:
        attention: To be called.
        summary: Which backends it calls when, one line.
        notice: What the user should know, one line, or None.
    """

    attention: Attention
    summary: str
    notice: str | None = None


def choose_ops(
    name: str = "eager",
    *,
    attention: str = AUTO,
    device: torch.device | str,
    dtype: torch.dtype,
    training: bool = False,
) -> Ops:
    """The ops bundle of a model, with its attention chosen: the one place where models get their ops from.

    Args:
        name: An installed ops bundle.
        attention: A backend, or ``auto``: the fastest by the measured times, and the bundle's own where none are known.
        device: Where the model runs.
        dtype: Dtype of its activations.
        training: Whether it is trained.

    Raises:
        ValueError: no such bundle or backend, it cannot run there, or a table of times is broken.

    Warns:
        UserWarning: once, what :attr:`AttentionChoice.notice` says.
    """
    ops = resolve_ops(name)
    target = describe_target(device, dtype, training=training)
    choice = choose_attention(attention, target, otherwise=ops.attention, otherwise_name=_own_name(name))
    if choice.notice is not None:
        warnings.warn(choice.notice, stacklevel=2)
    return replace(ops, attention=choice.attention)


def choose_attention(
    name: str,
    target: Target,
    *,
    rows: Sequence[AttentionRow] | None = None,
    otherwise: Attention = sdpa,
    otherwise_name: str = "sdpa",
) -> AttentionChoice:
    """Settle what a model's attention calls.

    Args:
        name: A backend, or ``auto``.
        target: Where it runs.
        rows: Measured times; None takes the shipped ones and the user's.
        otherwise: What ``auto`` calls where no time is known.
        otherwise_name: Its name.

    Raises:
        ValueError: no such backend, it cannot run there, or a table of times is broken.
    """
    if name != AUTO:
        return _named(name, target)
    rows = known_rows() if rows is None else rows
    rows = [row for row in rows if (row.device, row.dtype) == (target.name, dtype_name(target.dtype))]
    if not rows:
        return AttentionChoice(
            attention=otherwise, summary=f"{otherwise_name} (no times are known)", notice=_unmeasured(target)
        )
    measured = {row.backend for row in rows}
    # A backend that was there when the times were taken may be gone; the others are still ordered by them.
    found = {name: attention_backend(name) for name in backend_names() if name in measured}
    usable = [name for name, backend in found.items() if why_not(backend, target) is None]
    plan = fastest(rows, usable, training=target.training)
    loaded = {name: found[name].load() for name in sorted(set(plan.values()))}
    return AttentionChoice(attention=planned(plan, loaded, otherwise), summary=_describe(plan, otherwise_name))


def costs(rows: Iterable[AttentionRow], *, training: bool) -> dict[Bucket, dict[str, float]]:
    """Seconds by bucket and backend, of the forward alone or of a training step."""
    times: dict[Bucket, dict[str, float]] = {}
    for row in rows:
        if row.direction == ("training" if training else "forward"):
            bucket = Bucket(head_dim=row.head_dim, masked=row.masked, length=row.length)
            times.setdefault(bucket, {})[row.backend] = row.seconds
    return dict(sorted(times.items()))


def fastest(rows: Iterable[AttentionRow], available: Sequence[str], *, training: bool) -> dict[Bucket, str]:
    """The backend of each bucket: the first of ``available`` that reaches 0.98 of the best speed among them.

    Args:
        rows: Times on one device, in one dtype.
        available: Backends that can run, in order of preference.
        training: Whether the times of a training step count, or those of the forward.
    """
    plan = {}
    for bucket, seconds in costs(rows, training=training).items():
        candidates = [name for name in available if name in seconds]
        if candidates:
            best = min(seconds[name] for name in candidates)
            plan[bucket] = next(name for name in candidates if best >= GOOD_ENOUGH * seconds[name])
    return plan


def planned(plan: Mapping[Bucket, str], loaded: Mapping[str, Attention], otherwise: Attention) -> Attention:
    """A function that calls the backend of the bucket of its inputs, and ``otherwise`` outside all buckets.

    A bucket ends half-way (in proportion) to its neighbours, and at half and at twice its own length.
    """
    steps: dict[tuple[int, bool], list[tuple[float, float, Attention]]] = {}
    lengths: dict[tuple[int, bool], list[int]] = {}
    for bucket in sorted(plan):
        lengths.setdefault((bucket.head_dim, bucket.masked), []).append(bucket.length)
    for bucket, name in sorted(plan.items()):
        key = (bucket.head_dim, bucket.masked)
        before = max((n for n in lengths[key] if n < bucket.length), default=0)
        after = min((n for n in lengths[key] if n > bucket.length), default=math.inf)
        low = max(bucket.length / REACH, math.sqrt(before * bucket.length))
        high = min(bucket.length * REACH, math.sqrt(after * bucket.length))
        steps.setdefault(key, []).append((low, high, loaded[name]))
    if all(chosen is otherwise for group in steps.values() for _, _, chosen in group):
        return otherwise

    def attention(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None) -> Tensor:
        for low, high, chosen in steps.get((q.shape[-1], mask is not None), ()):
            if low <= q.shape[1] <= high:
                return chosen(q, k, v, mask=mask)
        return otherwise(q, k, v, mask=mask)

    return attention


def _named(name: str, target: Target) -> AttentionChoice:
    backend = attention_backend(name)
    reason = why_not(backend, target)
    if reason is not None:
        raise ValueError(f"{name} cannot be used: {reason}; choose another one or auto")
    support = support_on(backend, target) or AttentionSupport(device=None)
    chosen = _checked(backend.load(), name, support)
    if support.key_mask:
        return AttentionChoice(attention=chosen, summary=name)
    return AttentionChoice(
        attention=chosen,
        summary=f"{name}; sdpa where keys are masked",
        notice=f"{name} takes no key mask on {target.device.type}; calls with one go to sdpa",
    )


def _checked(attention: Attention, name: str, support: AttentionSupport) -> Attention:
    """``attention`` that names the backend when a width does not fit, and leaves to sdpa the masks it cannot take."""
    if support.head_dims is None and support.key_mask:
        return attention

    def checked(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None) -> Tensor:
        if support.head_dims is not None and q.shape[-1] not in support.head_dims:
            raise ValueError(f"attention: {name} takes no heads of width {q.shape[-1]}; choose another one or auto")
        if mask is not None and not support.key_mask:
            return sdpa(q, k, v, mask=mask)
        return attention(q, k, v, mask=mask)

    return checked


def _own_name(ops: str) -> str:
    """Backend name of a bundle's own attention."""
    return "sdpa" if ops == "eager" else ops


def _unmeasured(target: Target) -> str | None:
    # Elsewhere there is little to choose from, and a first run on a CPU should not begin with homework.
    if target.device.type != "cuda":
        return None
    return (
        f"attention has not been measured on {target.name} in {dtype_name(target.dtype)}; "
        "omnihuman-core bench-attention finds the fastest"
    )


def _describe(plan: Mapping[Bucket, str], otherwise_name: str) -> str:
    groups: dict[str, list[str]] = {}
    for bucket, name in sorted(plan.items()):
        masked = " masked" if bucket.masked else ""
        groups.setdefault(name, []).append(f"{bucket.length} x {bucket.head_dim}{masked}")
    parts = [f"{name} near {', '.join(buckets)}" for name, buckets in groups.items()]
    return "; ".join([*parts, f"{otherwise_name} elsewhere"])
