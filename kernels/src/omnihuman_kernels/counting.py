"""Counts the kernels that a piece of torch code would launch, without running it: on meta tensors."""

# torch does not type its dispatch modes.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Matrix products and attention: their number is the model's, not the fusion's.
PRODUCTS = frozenset(
    {
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
        "aten::baddbmm",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "omnihuman::joint_attention",
        "omnihuman::joint_attention_backward",
    }
)
_ALLOCATE = frozenset(
    {
        "aten::empty",
        "aten::empty_like",
        "aten::new_empty",
        "aten::empty_strided",
        "aten::new_empty_strided",
        "aten::_unsafe_view",
    }
)


class KernelCounter(TorchDispatchMode):
    """Context that notes every operator which writes new memory.

    Views and allocations launch nothing. An operator that torch composes of others is counted by its parts, and the
    operators of this package as the one kernel that they launch forward.

    Attributes:
        elementwise: Name to number, of everything but matrix products and attention.
        products: Name to number, of matrix products and attention.
    """

    def __init__(self) -> None:
        super().__init__()
        self.elementwise: Counter[str] = Counter()
        self.products: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the operator, then run it."""
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        first = out[0] if isinstance(out, tuple | list) and out else out
        if isinstance(first, torch.Tensor) and not func.is_view and name not in _ALLOCATE:
            (self.products if name in PRODUCTS else self.elementwise)[name] += 1
        return out
