"""Attention backends that come with torch: its kernels one by one, and FlexAttention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from omnihuman_core.contracts.ops import Attention


def load_sdpa(kernel: SDPBackend) -> Attention:
    """``scaled_dot_product_attention`` with one kernel; torch raises ``RuntimeError`` where it cannot run."""

    def forced(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None) -> Tensor:
        q, k, v = (rearrange(x, "B L N K -> B N L K") for x in (q, k, v))  # (B, N, L, K)
        with sdpa_kernel(kernel):
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
