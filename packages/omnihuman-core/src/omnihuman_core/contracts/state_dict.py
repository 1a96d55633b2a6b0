"""Contract of a state-dict adapter: the key map between a public checkpoint layout and one of our modules.

Registered under ``omnihuman.state_dict_adapter.v1``.

Invariants:

1. ``to_native(from_native(s)) == s`` for every state dict ``s`` of the module, bit for bit.
2. ``to_native`` maps every key or raises ``ValueError`` that names the keys left over.

Stability: 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class StateDictAdapter(Protocol):
    """Renames, splits and fuses tensors between a public layout and ours."""

    def to_native(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Public layout to ours."""
        ...

    def from_native(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ours to the public layout."""
        ...
