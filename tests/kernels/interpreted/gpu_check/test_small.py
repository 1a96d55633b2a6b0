"""Every op on small shapes, in the ways that a CPU can follow."""

import itertools

import pytest
import torch

from omnihuman_kernels import _launch

SMALL = {"BATCH": 2, "LENGTH": 11, "KEYS": 9, "HEADS": 2, "WIDTH": 16, "SEGMENTS": (2, 5, 4), "DOCUMENTS": (5, 0, 8)}


@pytest.fixture
def small(machine, monkeypatch):
    for name, value in SMALL.items():
        monkeypatch.setattr(machine.small, name, value)
    monkeypatch.setattr(_launch, "architecture", lambda x: "interpreter")
    return machine.small


def test_every_op_agrees_in_small(small, monkeypatch):
    """In the ways that need no GPU; a batch, a key mask, weights by segment and documents among them."""
    monkeypatch.setattr(small, "WAYS", (("plain", small.plain, torch.float32, (16,)),))
    rows = list(small.agreement(float("inf")))
    assert [row for row in rows if row["status"] != "agrees"] == []
    names = {f"{row['op']} {row['shape']}" for row in rows}
    assert len(names) == len(rows) == 9
    assert {
        "joint_attention key mask K=16", "joint_attention B=2 K=16", "joint_attention_varlen K=16",
        "qk_norm_rope B=2 segments=(2, 5, 4) K=16", "rms_norm_silu B=2",
    } <= names  # fmt: skip


def test_small_shapes_find_an_op_that_forgets_the_mask_or_the_batch(small, monkeypatch):
    right = small.joint_attention
    monkeypatch.setattr(small, "joint_attention", lambda q, k, v, mask=None: right(q, k[:1].expand_as(k), v))
    monkeypatch.setattr(small, "ops", lambda head_dim, ops=small.ops: itertools.islice(ops(head_dim), 2))
    monkeypatch.setattr(small, "WAYS", (("plain", small.plain, torch.float32, (16,)),))
    assert [row["status"] for row in small.agreement(float("inf"))] == ["failed", "failed"]
    assert {row["status"] for row in small.agreement(-1.0)} == {"skipped"}
