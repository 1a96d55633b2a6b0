"""The attention backends by name, what each takes, and why one cannot run on a device.

Nothing is imported and no device is asked before a backend is looked at.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.attention import SDPBackend

from omnihuman_core.contracts.ops import Attention, AttentionSupport, Ops
from omnihuman_core.ops.attention import attention, softmax_attention
from omnihuman_core.ops.flash_attention import load_flash_attention
from omnihuman_core.ops.torch_attention import load_flex, load_sdpa
from omnihuman_core.plugins import PluginError, installed, resolve_ops

HALF = (torch.bfloat16, torch.float16)
# Beyond any compute capability that exists.
NEWEST = (99, 9)


@dataclass(frozen=True, kw_only=True)
class AttentionBackend:
    """An implementation of :class:`~omnihuman_core.contracts.ops.Attention` that may or may not run here.

    Attributes:
        name: What configurations and tables call it.
        supports: What it takes, one entry a type of device; empty where it does not say and must be tried.
        load: Imports it. Raises ``ImportError`` or ``ValueError`` where that fails.
        with_torch: It comes with torch, so that nothing need be imported to know that it is there.
    """

    name: str
    supports: tuple[AttentionSupport, ...]
    load: Callable[[], Attention]
    with_torch: bool = False


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where attention is to run.

    Attributes:
        device: The device.
        name: What tables call it: model of the GPU, or of the processor with the number of threads.
        capability: Compute capability of a CUDA device.
        dtype: Dtype of q, k and v.
        training: Whether gradients are needed.
    """

    device: torch.device
    name: str
    capability: tuple[int, int] | None
    dtype: torch.dtype
    training: bool = False


def describe_target(device: torch.device | str, dtype: torch.dtype, *, training: bool = False) -> Target:
    """Ask a device for its name and capability.

    Raises:
        ValueError: the CUDA device is not there.
    """
    device, capability = torch.device(device), None
    name = device.type
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"device: {device} is not there ({torch.cuda.device_count()} CUDA devices)")
        name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    elif device.type == "cpu":
        name = f"{_processor()}, {torch.get_num_threads()} threads"
    return Target(device=device, name=name, capability=capability, dtype=dtype, training=training)


def _flash_attention(
    version: int, capabilities: tuple[tuple[int, int], tuple[int, int]], head_dims: Sequence[int]
) -> AttentionBackend:
    return AttentionBackend(
        name=f"flash_attn_{version}",
        supports=(AttentionSupport(device="cuda", capabilities=capabilities, dtypes=HALF, head_dims=head_dims),),
        load=partial(load_flash_attention, version),
    )


# Plainest first: where two are as fast as each other, the choice takes the first.
_OWN = (
    AttentionBackend(name="sdpa", supports=(AttentionSupport(device=None),), with_torch=True, load=lambda: attention),
    AttentionBackend(
        name="sdpa_flash",
        supports=(
            AttentionSupport(device="cpu"),
            AttentionSupport(
                device="cuda",
                capabilities=((8, 0), NEWEST),
                dtypes=HALF,
                head_dims=range(8, 257, 8),
                key_mask=False,
            ),
        ),
        with_torch=True,
        load=partial(load_sdpa, SDPBackend.FLASH_ATTENTION),
    ),
    AttentionBackend(
        name="sdpa_cudnn",
        supports=(
            AttentionSupport(device="cuda", capabilities=((8, 0), NEWEST), dtypes=HALF, head_dims=range(8, 129, 8)),
        ),
        with_torch=True,
        load=partial(load_sdpa, SDPBackend.CUDNN_ATTENTION),
    ),
    AttentionBackend(
        name="sdpa_efficient",
        supports=(AttentionSupport(device="cuda", capabilities=((5, 0), NEWEST)),),
        with_torch=True,
        load=partial(load_sdpa, SDPBackend.EFFICIENT_ATTENTION),
    ),
    _flash_attention(2, ((8, 0), NEWEST), range(8, 257, 8)),
    _flash_attention(3, ((9, 0), (9, 0)), range(8, 257, 8)),
    _flash_attention(4, ((9, 0), (11, 9)), (64, 96, 128)),
    AttentionBackend(
        name="flex",
        supports=(
            # For a CPU torch 2.13 compiles no backward, and no mask for lengths that vary.
            AttentionSupport(device="cuda", capabilities=((7, 5), NEWEST), head_dims=(16, 32, 64, 128, 256)),
        ),
        with_torch=True,
        load=load_flex,
    ),
    AttentionBackend(
        name="eager", supports=(AttentionSupport(device=None),), with_torch=True, load=lambda: softmax_attention
    ),
)


def backend_names() -> tuple[str, ...]:
    """Names of all backends, plainest first: those of torch, flash-attn, then the installed ops bundles.

    Raises:
        PluginError: an ops bundle has the name of a backend that is not its own.
    """
    own = tuple(backend.name for backend in _OWN)
    # The eager bundle's attention is the backend "sdpa"; "eager" is the formula alone.
    bundles = [name for name in sorted(installed("ops")) if name != "eager"]
    for name in bundles:
        if name in (*own, "auto"):
            raise PluginError(f"ops plugin {name!r} has the name of an attention backend; it must be renamed")
    return (*own, *bundles)


def attention_backend(name: str) -> AttentionBackend:
    """The backend ``name``; the package of an ops bundle is imported to read what it supports.

    Raises:
        ValueError: no such backend.
    """
    for backend in _OWN:
        if backend.name == name:
            return backend
    if name not in backend_names():
        raise ValueError(f"unknown backend {name!r}; known are auto, {', '.join(backend_names())}")
    try:
        ops: Ops = resolve_ops(name)
    except Exception as error:
        # A kernel package may fail at import in many ways; whoever asks for the backend learns which.
        return AttentionBackend(name=name, supports=(), load=partial(_fail, one_line(error)))
    return AttentionBackend(name=name, supports=ops.attention_support, load=lambda: ops.attention)


def why_not(backend: AttentionBackend, target: Target) -> str | None:
    """Why a backend cannot run on ``target``, without its name; None where it can.

    What it declares is compared first; only then is its package imported.
    """
    if backend.supports:
        support = support_on(backend, target)
        reason = next(_mismatches(support, target), None) if support else f"does not run on {target.device.type}"
        if reason is not None or backend.with_torch:
            return reason
    try:
        loaded = backend.load()
        if not backend.supports:
            _try(loaded, target)
    except ModuleNotFoundError as error:
        return f"not installed (no module {error.name})"
    except Exception as error:
        # Compiled packages fail in many ways where they do not fit torch, the driver or the device.
        return one_line(error)
    return None


def support_on(backend: AttentionBackend, target: Target) -> AttentionSupport | None:
    """What ``backend`` declares for the type of device of ``target``; None where it has nothing for it."""
    return next((entry for entry in backend.supports if entry.device in (None, target.device.type)), None)


def one_line(error: BaseException) -> str:
    """First line of what an error says, or its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _mismatches(support: AttentionSupport, target: Target) -> Iterator[str]:
    if support.capabilities is not None and target.capability is not None:
        low, high = support.capabilities
        if not low <= target.capability <= high:
            wanted = f"{low[0]}.{low[1]}" + (" or newer" if high == NEWEST else f" to {high[0]}.{high[1]}")
            yield f"needs compute capability {wanted}, {target.name} has {target.capability[0]}.{target.capability[1]}"
    if target.dtype not in support.dtypes:
        names = ", ".join(dtype_name(dtype) for dtype in support.dtypes)
        yield f"takes {names}, not {dtype_name(target.dtype)}"
    if target.training and not support.backward:
        yield f"has no backward on {target.device.type}"


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.bfloat16`` -> ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def _try(attention: Attention, target: Target) -> None:
    """One small call, for a backend that does not say where it runs."""
    q = torch.zeros(1, 16, 1, 64, dtype=target.dtype, device=target.device, requires_grad=target.training)
    out = attention(q, q, q)
    if target.training:
        torch.autograd.grad(out.sum(), q)


def _fail(reason: str) -> Attention:
    raise ImportError(reason)


def _processor() -> str:
    """Model of the processor; torch and the standard library know its kind at most."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "cpu"
