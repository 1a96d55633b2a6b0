"""flash-attn 2, 3 and 4 as :class:`~omnihuman_core.contracts.ops.Attention`, where they are installed.

All three take ``(B, L, N, K)``. None takes a key mask: the keys that count are packed side by side and the function for
sequences of different lengths is called. Packing asks the device how many keys there are, once a call.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from omnihuman_core.contracts.ops import Attention

# Module that holds the functions, by major version.
MODULES = {2: "flash_attn", 3: "flash_attn_interface", 4: "flash_attn.cute.interface"}


def load_flash_attention(version: int) -> Attention:
    """Import flash-attn and wrap it.

    Args:
        version: Major version, a key of :data:`MODULES`.

    Raises:
        ImportError: it is not installed, or was built for another torch or CUDA.
    """
    module = import_module(MODULES[version])
    try:
        return wrap_flash_attention(module.flash_attn_func, module.flash_attn_varlen_func)
    except AttributeError as error:
        raise ImportError(f"{MODULES[version]} is no flash-attn {version}: {error}") from error


def wrap_flash_attention(dense: Callable[..., Any], varlen: Callable[..., Any]) -> Attention:
    """Attention with a key mask out of a dense function and one for packed sequences.

    Args:
        dense: ``(q, k, v)`` in ``(B, L, N, K)`` to the output, or to a tuple that begins with it.
        varlen: The same for ``(total, N, K)`` with ``cu_seqlens_q``, ``cu_seqlens_k``, ``max_seqlen_q``,
            ``max_seqlen_k``.
    """

    def flash_attention(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            return _first(dense(q, k, v))
        batch, length = q.shape[:2]
        keys = mask.flatten().nonzero().squeeze(1)
        k, v = (rearrange(x, "B M N K -> (B M) N K").index_select(0, keys) for x in (k, v))  # (total, N, K)
        out = varlen(
            rearrange(q, "B L N K -> (B L) N K"),
            k,
            v,
            cu_seqlens_q=torch.arange(0, (batch + 1) * length, length, dtype=torch.int32, device=q.device),
            cu_seqlens_k=F.pad(mask.sum(dim=1).cumsum(dim=0), (1, 0)).to(torch.int32),
            max_seqlen_q=length,
            # An upper limit will do, and the true one would have to be read from the device.
            max_seqlen_k=mask.shape[1],
        )
        return rearrange(_first(out), "(B L) N K -> B L N K", B=batch)  # (B, L, N, K)

    return flash_attention


def _first(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Version 4, and old builds of 3, return the row sums as well."""
    return out[0] if isinstance(out, tuple) else out
