"""What is checked and measured: for each op its inputs at real sizes, the plain formula, its peers and its floor."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from case import Case, Function, noise
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from omnihuman_core.ops import eager_ops, rms_norm
from omnihuman_kernels import performance
from omnihuman_kernels.frame_cross_attention import frame_cross_attention
from omnihuman_kernels.gated_residual import gated_residual
from omnihuman_kernels.joint_attention import joint_attention, joint_attention_varlen
from omnihuman_kernels.modulated_norm import modulated_norm, residual_modulated_norm
from omnihuman_kernels.qk_norm_rope import qk_norm_rope
from omnihuman_kernels.rms_norm_silu import rms_norm_silu
from tests.kernels import references

# 832 x 480 pixels, 5 s at 25 fps with a reference picture: 33 latent frames of 1560 tokens and 256 words.
SEGMENTS = (1560, 49920, 256)
LENGTH, WIDTH, HEADS, HEAD_DIM = sum(SEGMENTS), 3072, 24, 128
EPS = 1e-6
EAGER = eager_ops()
COPY = {("forward", "copy"): (0.75, 0.92), ("backward", "copy"): (0.60, 0.85)}


def real_qk_norm_rope(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """The eager op in real numbers: the compiler has no code for complex ones, and would only call torch's kernels."""

    def one(x: Tensor, weight: Tensor) -> Tensor:
        real, imaginary = rms_norm(x, weight, eps=eps).float().unflatten(-1, (-1, 2)).unbind(-1)
        c, s = cos[:, None], sin[:, None]  # (L, 1, K / 2)
        turned = torch.stack([real * c - imaginary * s, real * s + imaginary * c], dim=-1)
        return turned.flatten(-2).to(x.dtype)

    return one(q, q_weight), one(k, k_weight)


def qk_norm_rope_cases() -> Iterator[Case]:
    def make() -> list[Tensor]:
        # As slices of the packed projection, in its precision: a cast of a slice would close its gaps.
        q, k, _ = noise(1, LENGTH, 3, HEADS, HEAD_DIM).bfloat16().unbind(2)
        angles = noise(LENGTH, HEAD_DIM // 2)
        return [q, k, 1 + 0.1 * noise(HEAD_DIM), 1 + 0.1 * noise(HEAD_DIM), angles.cos(), angles.sin()]

    size = (1, LENGTH, HEADS, HEAD_DIM)
    yield Case(
        op="qk_norm_rope",
        shape=f"L={LENGTH} N={HEADS} K={HEAD_DIM}",
        make=make,
        differentiable=4,
        keep=(4, 5),
        bound="memory",
        ours=functools.partial(qk_norm_rope, eps=EPS),
        reference=functools.partial(references.qk_norm_rope, eps=EPS),
        eager=functools.partial(EAGER.qk_norm_rope, eps=EPS),
        compiled=functools.partial(real_qk_norm_rope, eps=EPS),
        cost=(performance.qk_norm_rope(*size), performance.qk_norm_rope(*size, backward=True)),
        targets={**COPY, ("forward", "eager"): (6, 10), ("forward", "compile"): (1.05, 1.5)},
    )


def modulation_cases() -> Iterator[Case]:
    options = {"segments": SEGMENTS, "eps": EPS}
    ops = [
        ("modulated_norm", modulated_norm, references.modulated_norm, "xgg", options, performance.modulated_norm),
        (
            "gated_residual",
            gated_residual,
            references.gated_residual,
            "xxg",
            {"segments": SEGMENTS},
            performance.gated_residual,
        ),
        (
            "residual_modulated_norm",
            residual_modulated_norm,
            references.residual_modulated_norm,
            "xxggg",
            options,
            performance.residual_modulated_norm,
        ),
    ]

    def make(kinds: str) -> list[Tensor]:
        return [noise(1, LENGTH if kind == "x" else len(SEGMENTS), WIDTH) for kind in kinds]

    for name, ours, reference, kinds, given, cost in ops:
        yield Case(
            op=name,
            shape=f"L={LENGTH} D={WIDTH} segments={SEGMENTS}",
            make=functools.partial(make, kinds),
            bound="memory",
            differentiable=len(kinds),
            ours=functools.partial(ours, **given),
            reference=functools.partial(reference, **given),
            eager=functools.partial(getattr(EAGER, name), **given),
            cost=(cost(1, LENGTH, WIDTH), cost(1, LENGTH, WIDTH, backward=True)),
            targets=COPY,
        )


def frame_cross_attention_cases() -> Iterator[Case]:
    frames, queries, keys = 32, 1560, 32
    size = (1, frames, queries, keys, HEADS, HEAD_DIM)

    def make() -> list[Tensor]:
        k, v = noise(2, 1, frames, keys, HEADS, HEAD_DIM)
        return [noise(1, frames, queries, HEADS, HEAD_DIM), k, v, 1 + 0.1 * noise(HEAD_DIM)]

    yield Case(
        op="frame_cross_attention",
        shape=f"t={frames} P={queries} A={keys} N={HEADS} K={HEAD_DIM}",
        make=make,
        bound="memory",
        differentiable=4,
        ours=functools.partial(frame_cross_attention, eps=EPS),
        reference=functools.partial(references.frame_cross_attention, eps=EPS),
        eager=functools.partial(EAGER.frame_cross_attention, eps=EPS),
        cost=(performance.frame_cross_attention(*size), performance.frame_cross_attention(*size, backward=True)),
        targets={("forward", "copy"): (0.60, 0.85), ("backward", "copy"): (0.60, 0.85)},
    )


def rms_norm_silu_cases() -> Iterator[Case]:
    for form in (torch.contiguous_format, torch.channels_last_3d):
        size = (1, 256, 4 * 240 * 416)

        def make(form: torch.memory_format = form) -> list[Tensor]:
            return [noise(1, 256, 4, 240, 416).contiguous(memory_format=form), 1 + 0.1 * noise(256)]

        yield Case(
            op="rms_norm_silu",
            shape=f"C=256 T=4 H=240 W=416 {str(form).removeprefix('torch.')}",
            make=make,
            bound="memory",
            differentiable=2,
            ours=functools.partial(rms_norm_silu, eps=EPS),
            reference=functools.partial(references.rms_norm_silu, eps=EPS),
            eager=functools.partial(references.rms_norm_silu, eps=EPS),
            cost=(performance.rms_norm_silu(*size), performance.rms_norm_silu(*size, backward=True)),
            targets=COPY,
        )


def sdpa(q: Tensor, k: Tensor, v: Tensor, *, backend: SDPBackend | None = None) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if backend is None:
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


PEERS = {
    "sdpa flash": functools.partial(sdpa, backend=SDPBackend.FLASH_ATTENTION),
    "sdpa cudnn": functools.partial(sdpa, backend=SDPBackend.CUDNN_ATTENTION),
    "sdpa default": sdpa,
}


def attention_cases() -> Iterator[Case]:
    def make(length: int, heads: int, head_dim: int) -> list[Tensor]:
        return list(noise(3, 1, length, heads, head_dim))

    def some_queries(length: int, heads: int, head_dim: int) -> tuple[Function, list[Tensor]]:
        """Attention of a few queries among all: what float64 can hold of a long sequence, forward and backward."""
        q, k, v = make(length, heads, head_dim)
        rows = torch.arange(0, length, max(1, length // 31), device=q.device)

        def ours(part: Tensor, k: Tensor, v: Tensor) -> Tensor:
            whole = q.to(part.dtype).index_copy(1, rows, part)
            return joint_attention(whole, k, v)[:, rows]

        return ours, [q[:, rows], k, v]

    def case(
        length: int, head_dim: int, directions: tuple[str, ...], targets: dict[tuple[str, str], tuple[float, float]]
    ) -> Case:
        size = (1, length, length, HEADS, head_dim)
        return Case(
            op="joint_attention",
            shape=f"L={length} N={HEADS} K={head_dim}",
            bound="matrix",
            differentiable=3,
            make=functools.partial(make, length, HEADS, head_dim),
            small=functools.partial(make, 2085, 3, head_dim),
            part=functools.partial(some_queries, length, HEADS, head_dim),
            ours=joint_attention,
            reference=references.attention,
            peers=PEERS,
            directions=directions,
            targets=targets,
            cost=(performance.attention(*size), performance.attention(*size, backward=True)),
        )

    forward = {("forward", "sdpa flash"): (1.20, 1.60), ("forward", "sdpa cudnn"): (0.78, 0.97)}
    backward = {("backward", "sdpa cudnn"): (0.55, 0.95)}
    yield case(8192, 128, ("forward", "backward"), forward | backward)
    yield case(16384, 64, ("forward",), {("forward", "sdpa cudnn"): (0.90, 1.05)})
    yield case(LENGTH, 128, ("forward",), forward)
    yield case(16384, 128, ("backward",), backward)
    yield case(119056, 128, ("forward",), forward)


def packed_attention_cases() -> Iterator[Case]:
    lengths = (1024, 4096, 2500, 572)
    starts = torch.tensor([0, 1024, 5120, 7620, 8192], dtype=torch.int32, device="cuda")

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return joint_attention_varlen(
            q, k, v, cu_seqlens_q=starts, cu_seqlens_k=starts, max_seqlen_q=max(lengths), max_seqlen_k=max(lengths)
        )

    def one_by_one(q: Tensor, k: Tensor, v: Tensor, attend: Function = references.attention) -> Tensor:
        parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
        return torch.cat([attend(*(x[None] for x in part))[0] for part in parts])

    cost = [
        sum(performance.attention(1, n, n, HEADS, HEAD_DIM, backward=b).flops for n in lengths) for b in (False, True)
    ]
    moved = 8192 * HEADS * HEAD_DIM * 2
    yield Case(
        op="joint_attention_varlen",
        shape=f"lengths={lengths} N={HEADS} K={HEAD_DIM}",
        bound="matrix",
        differentiable=3,
        make=lambda: list(noise(3, 8192, HEADS, HEAD_DIM)),
        small=lambda: list(noise(3, 8192, 2, HEAD_DIM)),
        ours=ours,
        reference=one_by_one,
        peers={"sdpa one by one": functools.partial(one_by_one, attend=sdpa)},
        cost=(performance.Cost(flops=cost[0], bytes=4 * moved), performance.Cost(flops=cost[1], bytes=8 * moved)),
    )


def dit_cases() -> Iterator[Case]:
    # It needs more of the checkout than the ops do.
    from dit import dit_cases as cases

    yield from cases()


# In order of what a short run should know first. Each group runs in a process of its own.
GROUPS: dict[str, Callable[[], Iterator[Case]]] = {
    "qk_norm_rope": qk_norm_rope_cases,
    "modulation": modulation_cases,
    "frame_cross_attention": frame_cross_attention_cases,
    "attention": attention_cases,
    "dit": dit_cases,
    "packed_attention": packed_attention_cases,
    "rms_norm_silu": rms_norm_silu_cases,
}
