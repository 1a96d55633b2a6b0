"""A second device that is made up: its tensors hold numbers of the CPU, and refuse to be mixed with tensors of the CPU.

They say that they lie on ``meta``, the only other device of a build of torch for CPUs. What a GPU refuses is refused:
operators with tensors of both, generators of the other one, NumPy. What it takes is taken: copies, single numbers,
indices from the CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("meta")
COPIES = {"aten::copy_", "aten::_to_copy"}
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"}


class There(Tensor):
    """A tensor of the other device; its numbers are in ``here``."""

    here: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: Tensor) -> There:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=DEVICE,
        )
        made.here = here
        return made

    def tolist(self) -> Any:
        return self.here.tolist()

    def numpy(self, *_: object, **__: object) -> Any:
        raise TypeError("a tensor of another device has no numpy array")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


class Dispatch(TorchDispatchMode):
    """Makes new tensors of the other device, for as long as it is entered."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


def dispatch(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operator on the CPU as the other device would, or refuse it."""
    name, tensors = func._schema.name, [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = [x for x in tensors if isinstance(x, There)]
    device = kwargs.get("device") or (DEVICE if there else torch.device("cpu"))
    if not there and torch.device(device).type != DEVICE.type:
        return func(*args, **kwargs)
    # Of what is indexed and what it is set to; indices may lie anywhere, but on a CPU only here.
    bound = [x for x in (args[0], *args[2:3]) if isinstance(x, Tensor)] if name in INDEXED else tensors
    if name in INDEXED and not isinstance(args[0], There):
        raise RuntimeError(f"{func} of a tensor on the CPU by indices of another device")
    if name not in COPIES and there and any(x.ndim and not isinstance(x, There) for x in bound):
        raise RuntimeError(f"{func} mixes devices: {[(str(x.device), tuple(x.shape)) for x in tensors]}")
    if any(isinstance(x, torch.Generator) for x in (*args, *kwargs.values())) and torch.device(device) == DEVICE:
        raise RuntimeError(f"{func} draws for another device with a generator of the CPU")
    if name == "aten::_fused_sdp_choice":
        # The kernels that are chosen go by the device; the formula runs anywhere.
        return 0
    args, kwargs = tree_map_only(There, lambda x: x.here, (args, kwargs))
    if "device" in kwargs:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    out = func(*args, **kwargs)
    if torch.device(device).type != DEVICE.type:
        return out
    known = {id(x.here): x for x in there}
    return tree_map_only(Tensor, lambda x: known[id(x)] if id(x) in known else There(x), out)


@contextmanager
def other_device(monkeypatch: Any) -> Iterator[torch.device]:
    """The other device, ready for whole programs."""

    def moved(self: torch.nn.Module, function: Any, recurse: bool = True) -> torch.nn.Module:
        """As torch moves a module; it would swap what parameters of two classes point to, which weak references bar."""
        for child in self.children():
            child._apply(function)
        for name, value in self._parameters.items():
            if value is not None:
                with torch.no_grad():
                    self._parameters[name] = torch.nn.Parameter(function(value).detach(), value.requires_grad)
        for name, buffer in self._buffers.items():
            self._buffers[name] = None if buffer is None else function(buffer)
        return self

    def enter(self: Any) -> None:
        """As ``torch.no_grad``: inference mode hands operators over before they are taken apart."""
        self.inner = torch.no_grad()
        self.inner.__enter__()

    autocast = torch.autocast
    monkeypatch.setattr(torch.nn.Module, "_apply", moved)
    # Torch has neither a lower precision nor a fused optimiser for it.
    monkeypatch.setattr(
        torch, "autocast", lambda kind, *a, **k: nullcontext() if kind == "meta" else autocast(kind, *a, **k)
    )
    # Its module is hidden behind the function of the same name.
    monkeypatch.setattr(sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda *_: None)
    monkeypatch.setattr(torch.inference_mode, "__enter__", enter)
    monkeypatch.setattr(torch.inference_mode, "__exit__", lambda self, *error: self.inner.__exit__(*error))
    with Dispatch():
        yield DEVICE
