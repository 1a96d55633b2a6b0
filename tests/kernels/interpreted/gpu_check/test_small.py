"""Every op on small shapes, in the ways that a CPU can follow."""

import contextlib
import functools
import itertools
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from omnihuman_kernels import _launch

SMALL = {"BATCH": 2, "LENGTH": 11, "KEYS": 9, "HEADS": 2, "WIDTH": 16, "SEGMENTS": (2, 5, 4), "DOCUMENTS": (5, 0, 8)}


@pytest.fixture
def small(machine, monkeypatch):
    # Errors of so few numbers are as the draw makes them: the same one, whatever runs before.
    torch.manual_seed(0)
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


@pytest.fixture
def one_graph(monkeypatch):
    """The compiler of the GPU needs one; what comes before it, and what it would be given, do not."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def only(small, monkeypatch, name):
    """Leaves one op."""
    monkeypatch.setattr(small, "ops", lambda head_dim, ops=small.ops: (op for op in ops(head_dim) if name in op[0]))


def test_every_op_compiles_in_one_graph(small, one_graph, monkeypatch):
    monkeypatch.setattr(small, "WAYS", (("compiled", small.compiled, torch.float32, (16,)),))
    rows = list(small.agreement(float("inf")))
    assert [(row["op"], row.get("problem")) for row in rows if row["status"] != "agrees"] == []
    assert len(rows) == 9
    assert {row["way"] for row in rows} == {"compiled"}


def test_an_op_that_breaks_the_graph_is_found(small, one_graph, monkeypatch):
    right = small.gated_residual

    def broken(*inputs, **options):
        torch._dynamo.graph_break()
        return right(*inputs, **options)

    monkeypatch.setattr(small, "gated_residual", broken)
    only(small, monkeypatch, "gated_residual")
    monkeypatch.setattr(small, "WAYS", (("compiled", small.compiled, torch.float32, (16,)),))
    (row,) = small.agreement(float("inf"))
    assert row["status"] == "failed"
    assert "graph" in row["problem"].lower()


class Graph:
    """As a CUDA graph: the operators that ran while it was recorded, on the memory that they had then."""

    def __init__(self):
        self.operators = []

    @torch.no_grad()
    def replay(self):
        for function, args, kwargs, before in self.operators:
            after = function(*args, **kwargs)
            for old, new in zip(tree_leaves(before), tree_leaves(after), strict=True):
                # A view follows its base, as does what an operator writes in place.
                if isinstance(old, torch.Tensor) and not function.is_view:
                    old.copy_(new)


class Recording(TorchDispatchMode):
    """As a stream that is captured, on which nobody may wait."""

    def __init__(self, graph):
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        out = function(*args, **(kwargs or {}))
        self.graph.operators.append((function, args, kwargs or {}, out))
        return out


@pytest.fixture
def graphs(monkeypatch):
    """CUDA graphs without CUDA; gives what was done in which order."""
    done = []

    @contextlib.contextmanager
    def doing(what, inside):
        done.append(what)
        with inside:
            yield

    def stream():
        return SimpleNamespace(wait_stream=lambda other: done.append("wait"))

    def replay(graph, play=Graph.replay):
        done.append("play")
        play(graph)

    monkeypatch.setattr(Graph, "replay", replay)
    monkeypatch.setattr(torch.cuda, "Stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda which: doing("warm up", contextlib.nullcontext()))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: doing("record", Recording(graph)))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("synchronise"))
    return done


def test_every_op_can_be_played_again(small, graphs, monkeypatch):
    monkeypatch.setattr(small, "WAYS", (("captured", small.captured, torch.float32, (16,)),))
    rows = list(small.agreement(float("inf")))
    assert [(row["op"], row.get("problem")) for row in rows if row["status"] != "agrees"] == []
    assert len(rows) == 9
    # Before it is recorded an op has compiled and found its memory, on a stream that the recording waits for.
    assert graphs == 9 * ["wait", "warm up", "wait", "record", "play", "synchronise"]


def test_an_op_that_cannot_be_played_again_is_found(small, graphs, monkeypatch):
    """One keeps numbers from the time of recording, one asks the device for a number."""
    right = small.gated_residual
    only(small, monkeypatch, "gated_residual")
    monkeypatch.setattr(small, "WAYS", (("captured", small.captured, torch.float32, (16,)),))

    def stale(residual, x, gate, **options):
        return right(residual, x, torch.tensor(gate.tolist()) + 0 * gate, **options)

    def waits(residual, x, gate, **options):
        return right(residual, x, gate * (1.0 if x.sum().item() < 1e9 else 2.0), **options)

    for wrong, problem in ((stale, "played again it differs"), (waits, "not permitted when stream is capturing")):
        monkeypatch.setattr(small, "gated_residual", wrong)
        (row,) = small.agreement(float("inf"))
        assert row["status"] == "failed"
        assert problem in row["problem"]
