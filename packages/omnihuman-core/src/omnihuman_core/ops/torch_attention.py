"""Attention backends that come with torch: its kernels one by one, and FlexAttention."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from omnihuman_core.contracts.ops import Attention

# Two threads that save and restore the switches at once would leave those of each other for good.
_TURN = threading.Lock()
# Kinds of calls that FlexAttention is compiled for: with and without a mask and gradients, each for lengths and batches
# of one and of more. After as many as torch's limit, eight, it would run uncompiled and hold all scores.
_FLEX_KINDS = 64


def load_sdpa(kernel: SDPBackend) -> Attention:
    """``scaled_dot_product_attention`` with one kernel; torch raises ``RuntimeError`` where it cannot run.

    Torch has switches of the whole process for its kernels, no argument. Threads that call this take turns at them, for
    as long as a kernel is launched, and leave them as they were. It cannot be helped that a plain
    ``scaled_dot_product_attention`` in another thread meanwhile sees the same switches, and that code under
    ``torch.compile``, whose kernel is chosen when it is traced, sets them without a turn: compile before other threads
    compute.
    """

    def forced(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None) -> Tensor:
        q, k, v = (rearrange(x, "B L N K -> B N L K") for x in (q, k, v))  # (B, N, L, K)
        # The compiler knows no locks.
        with nullcontext() if torch.compiler.is_compiling() else _TURN, sdpa_kernel(kernel):
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None, :])
        return rearrange(out, "B N L K -> B L N K")  # (B, L, N, K)

    return forced


def load_flex() -> Attention:
    """FlexAttention, compiled; the first call of a kind compiles.

    Raises:
        ImportError: this torch has none.
    """
    # Brings in the compiler, so it is imported where it is wanted.
    from torch.nn.attention.flex_attention import flex_attention

    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, _FLEX_KINDS)
    return wrap_flex(torch.compile(flex_attention))


def wrap_flex(flex_attention: Callable[..., Any]) -> Attention:
    """Attention with a key mask out of torch's ``flex_attention``, compiled or not."""

    def flex(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None) -> Tensor:
        q, k, v = (rearrange(x, "B L N K -> B N L K") for x in (q, k, v))  # (B, N, L, K)
        out: Tensor
        if mask is None:
            out = flex_attention(q, k, v)
        else:

            def counts(score: Tensor, b: Tensor, n: Tensor, query: Tensor, key: Tensor) -> Tensor:
                return torch.where(mask[b, key], score, -torch.inf)

            # A mask of blocks would have to be computed anew for every mask; keys that do not count are few.
            out = flex_attention(q, k, v, score_mod=counts)
        return rearrange(out, "B N L K -> B L N K")  # (B, L, N, K)

    return flex
