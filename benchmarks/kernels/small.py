"""Every op on small shapes in the ways that the large cases leave out.

Batches, a key mask on purpose, weights by segment, float16, ``torch.compile`` without a break, and a captured CUDA
graph, each forward and backward.
"""

from __future__ import annotations

import functools
import itertools
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
from case import noise
from cases import EPS
from report import first_line
from tiles import MOST_ERROR, relative_error
from torch import Tensor

from omnihuman_kernels.frame_cross_attention import frame_cross_attention
from omnihuman_kernels.gated_residual import gated_residual
from omnihuman_kernels.joint_attention import joint_attention, joint_attention_varlen
from omnihuman_kernels.modulated_norm import modulated_norm, residual_modulated_norm
from omnihuman_kernels.qk_norm_rope import qk_norm_rope
from omnihuman_kernels.rms_norm_silu import rms_norm_silu
from tests.kernels import references
from tests.kernels.agreement import assert_agrees, gradients

Function = Callable[..., Any]
Row = dict[str, Any]

# No multiples of a tile.
BATCH, LENGTH, KEYS, HEADS, WIDTH = 2, 301, 205, 3, 384
SEGMENTS, DOCUMENTS = (60, 200, 41), (130, 0, 171)


def ops(head_dim: int) -> Iterator[tuple[str, Function, Function, list[Tensor]]]:
    """Name, op, formula and inputs, all of which get gradients."""
    q = noise(BATCH, LENGTH, HEADS, head_dim)
    k, v = noise(2, BATCH, KEYS, HEADS, head_dim)
    mask = noise(BATCH, KEYS) > 0
    yield (
        f"joint_attention key mask K={head_dim}",
        functools.partial(joint_attention, mask=mask),
        functools.partial(references.attention, mask=mask),
        [q, k, v],
    )
    yield f"joint_attention B={BATCH} K={head_dim}", joint_attention, references.attention, [q, k, v]
    yield packed(head_dim)
    yield rotated(head_dim)
    x, others = noise(BATCH, LENGTH, WIDTH), noise(3, BATCH, len(SEGMENTS), WIDTH)
    shift, scale, gate = others
    given = {"segments": SEGMENTS}
    for name, ours, formula, inputs, options in (
        ("modulated_norm", modulated_norm, references.modulated_norm, [x, shift, scale], given | {"eps": EPS}),
        ("gated_residual", gated_residual, references.gated_residual, [x, noise(*x.shape), gate], given),
        (
            "residual_modulated_norm",
            residual_modulated_norm,
            references.residual_modulated_norm,
            [x, noise(*x.shape), gate, shift, scale],
            given | {"eps": EPS},
        ),
    ):
        shape = f"B={BATCH} segments={SEGMENTS}"
        yield f"{name} {shape}", functools.partial(ours, **options), functools.partial(formula, **options), inputs
    k, v = noise(2, BATCH, 3, 20, HEADS, head_dim)
    yield (
        f"frame_cross_attention B={BATCH} K={head_dim}",
        functools.partial(frame_cross_attention, eps=EPS),
        functools.partial(references.frame_cross_attention, eps=EPS),
        [noise(BATCH, 3, 101, HEADS, head_dim), k, v, 1 + 0.1 * noise(head_dim)],
    )
    yield (
        f"rms_norm_silu B={BATCH}",
        functools.partial(rms_norm_silu, eps=EPS),
        functools.partial(references.rms_norm_silu, eps=EPS),
        [noise(BATCH, 96, 2, 15, 17), 1 + 0.1 * noise(96)],
    )


def packed(head_dim: int) -> tuple[str, Function, Function, list[Tensor]]:
    """Documents side by side, one of them empty."""
    lengths = DOCUMENTS
    starts = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=noise(0).device)

    def one_by_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
        return torch.cat([references.attention(*(x[None] for x in part))[0] for part in parts])

    given = {"cu_seqlens_q": starts, "cu_seqlens_k": starts, "max_seqlen_q": max(lengths), "max_seqlen_k": max(lengths)}
    ours = functools.partial(joint_attention_varlen, **given)
    return f"joint_attention_varlen K={head_dim}", ours, one_by_one, list(noise(3, sum(lengths), HEADS, head_dim))


def rotated(head_dim: int) -> tuple[str, Function, Function, list[Tensor]]:
    """Norm and rotation of slices of one projection, with weights by segment."""
    angles = noise(LENGTH, head_dim // 2)
    tables = angles.cos(), angles.sin()

    def split(function: Function, qkv: Tensor, weights: Tensor) -> Any:
        q, k, _ = qkv.unbind(2)
        q_weights, k_weights = (tuple(x.unbind()) for x in weights.unbind())
        given = tables if qkv.dtype != torch.float64 else tuple(x.double() for x in tables)
        return function(q, k, q_weights, k_weights, *given, eps=EPS, segments=SEGMENTS)

    inputs = [noise(BATCH, LENGTH, 3, HEADS, head_dim), 1 + 0.1 * noise(2, len(SEGMENTS), head_dim)]
    ours, formula = (functools.partial(split, one) for one in (qk_norm_rope, references.qk_norm_rope))
    return f"qk_norm_rope B={BATCH} segments={SEGMENTS} K={head_dim}", ours, formula, inputs


def plain(ours: Function, formula: Function, inputs: list[Tensor], dtype: torch.dtype) -> None:
    assert_agrees(ours, formula, inputs, dtype)


def compiled(ours: Function, formula: Function, inputs: list[Tensor], dtype: torch.dtype) -> None:
    """The op inside code that the compiler makes kernels for, in one graph."""

    def inside(*given: Tensor) -> Any:
        out = ours(*(x * 1 for x in given))
        return tuple(y * 1 for y in out) if isinstance(out, tuple) else out * 1

    # All ops come through the same few lines, and one piece of code is compiled for eight of them at most.
    torch._dynamo.reset()
    assert_agrees(torch.compile(inside, fullgraph=True), formula, inputs, dtype)


def captured(ours: Function, formula: Function, inputs: list[Tensor], dtype: torch.dtype) -> None:
    """The op and its backward, recorded with other numbers and played again with these."""
    cast = [x.to(dtype) for x in inputs]
    with torch.no_grad():
        outs = ours(*cast)
    upstream = [torch.ones_like(y) for y in (outs if isinstance(outs, tuple) else (outs,))]
    expected = gradients(ours, cast, upstream)
    static = [torch.zeros_like(x) for x in cast]
    # Compiles and allocates: neither can be recorded.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        gradients(ours, static, upstream)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = gradients(ours, static, upstream)
    for x, y in zip(static, cast, strict=True):
        x.copy_(y)
    graph.replay()
    torch.cuda.synchronize()
    error = relative_error(got, expected)
    if not error < MOST_ERROR:
        raise AssertionError(f"played again it differs by {error:.1e}, allowed {MOST_ERROR:.0e}")


# What a user would miss most comes first; float16 compiles every kernel anew, and may be what no time is left for.
WAYS = (
    ("plain", plain, torch.bfloat16, (128, 64)),
    ("captured", captured, torch.bfloat16, (128,)),
    ("compiled", compiled, torch.bfloat16, (128,)),
    ("plain", plain, torch.float16, (128, 64)),
)


def agreement(deadline: float) -> Iterator[Row]:
    """A row for each op and way."""
    for way, check, dtype, head_dims in WAYS:
        for head_dim in head_dims:
            for name, ours, formula, inputs in ops(head_dim):
                op, _, shape = name.partition(" ")
                row: Row = {"op": op, "shape": shape, "dtype": str(dtype).removeprefix("torch."), "way": way}
                if "K=" not in shape and head_dim != head_dims[0]:
                    continue
                if time.monotonic() > deadline:
                    yield row | {"status": "skipped", "problem": "out of time"}
                    continue
                try:
                    check(ours, formula, inputs, dtype)
                except Exception as error:
                    traceback.print_exc()
                    yield row | {"status": "failed", "problem": first_line(error)}
                    continue
                yield row | {"status": "agrees"}
