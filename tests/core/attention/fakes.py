"""The softmax written out, rows of a table, and ops bundles that are not installed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from omnihuman_core.contracts import Ops
from omnihuman_core.ops import attention_backends, eager_ops
from omnihuman_core.ops.attention_backends import Target
from omnihuman_core.ops.attention_table import AttentionRow

CPU = torch.device("cpu")
HOPPER = Target(
    device=torch.device("cuda", 0), name="NVIDIA H100 80GB HBM3", capability=(9, 0), dtype=torch.bfloat16, training=True
)


def explicit(q, k, v, mask=None):
    """Attention in float64 by einsum."""
    scores = torch.einsum("blnk,bmnk->bnlm", q.double(), k.double()) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
    return torch.einsum("bnlm,bmnk->blnk", scores.softmax(-1), v.double())


def inputs(batch=2, queries=37, keys=53, heads=3, head_dim=24, dtype=torch.float32, grad=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, length, heads, head_dim) for length in (queries, keys, keys)]
    return [torch.randn(s, generator=generator).to(dtype).requires_grad_(grad) for s in shapes]


def key_mask(batch=2, keys=53):
    """Holes, and another number of keys in each sample."""
    lengths = torch.tensor([keys - 7 * i for i in range(batch)])[:, None]
    return (torch.arange(keys) < lengths) & (torch.arange(keys) % 5 != 3)


def row(backend="sdpa", seconds=1.0, **changes: Any) -> AttentionRow:
    usual = AttentionRow(
        device="a machine", dtype="float32", batch=1, length=64, heads=2, head_dim=16, masked=False,
        direction="forward", backend=backend, seconds=seconds, torch="2.13.0", date="2026-11-21",
    )  # fmt: skip
    return replace(usual, **changes)


class Installed:
    """Stands for installed ops bundles."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **bundles: Ops | Exception) -> None:
        self.imported: list[str] = []
        self.bundles = {"eager": eager_ops(), **bundles}
        monkeypatch.setattr(attention_backends, "installed", lambda kind: dict.fromkeys(self.bundles))
        monkeypatch.setattr(attention_backends, "resolve_ops", self.resolve)

    def resolve(self, name: str) -> Ops:
        self.imported.append(name)
        found = self.bundles[name]
        if isinstance(found, Exception):
            raise found
        return found
