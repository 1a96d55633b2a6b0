"""How kernels are launched: tile shapes as data, the device check, scratch memory for descriptors, the interpreter.

Nothing is tuned at run time. A tile shape is looked up by (op, architecture, head dim), so that what runs on a GPU is
what the ahead-of-time tests compiled: no spills, shared memory and registers within budget. To try another shape,
change the table and run the tests and ``benchmarks/kernels/gpu_check.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources

Architecture = Literal["hopper", "blackwell", "plain", "interpreter"]

# Programs for each multiprocessor of a kernel that runs over rows in a loop. One, two or four of them fit at once on
# every GPU, so they take whole rounds and end together; more would leave more sums to add up.
LOOPING_PROGRAMS = 4

# Multiprocessors of an H100, for where there is no GPU to ask: in the interpreter, and where kernels are only compiled.
MULTIPROCESSORS = 132

# Arguments that change with every clip and prompt. Kernels are not specialised on them: one binary serves all lengths,
# and it is the one that the tests compiled.
LENGTHS = (
    "length", "num_rows", "num_tiles", "num_chunks", "num_queries", "len_q", "len_k",
    "lse_stride_b", "lse_stride_n", "mask_stride_b", "bias_stride_b", "rows_a_chunk",
)  # fmt: skip

# A product and a sum in one instruction, as the registers and times here assume; what compilers do unasked differs by
# version and by TRITON_DEFAULT_FP_FUSION.
COMPILE_OPTIONS = {"enable_fp_fusion": True}

# Programs along the second and the third axis of a grid, at most, and of a whole one: Triton's launcher multiplies the
# axes in 32 bits and launches nothing where that is not positive, without a word.
MOST_PROGRAMS, MOST_PROGRAMS_IN_ALL = 65_535, 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Shape of one program of a matrix kernel.

    Attributes:
        block_m: Query rows of a tile.
        block_n: Key rows of a tile.
        num_warps: Warps of the program; with ``warp_specialize`` those of one of its consumer groups.
        num_stages: Depth of the load pipeline.
        tma: Loads go through tensor-memory descriptors.
        warp_specialize: A producer group loads while consumer groups compute. Only engages with ``num_warps == 4``.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    tma: bool = False
    warp_specialize: bool = False


INTERPRETED_TILE = Tile(block_m=32, block_n=32, num_warps=4, num_stages=1, tma=True, warp_specialize=True)


def interpreting() -> bool:
    """Whether Triton runs kernels in its CPU interpreter (``TRITON_INTERPRET=1``)."""
    return bool(triton.knobs.runtime.interpret)


def require_device(x: Tensor) -> None:
    """Reject tensors on which a kernel cannot run.

    Raises:
        ValueError: ``x`` is not on a CUDA device and kernels are not being interpreted.
    """
    if x.device.type != "cuda" and not interpreting():
        raise ValueError(f"triton ops need a CUDA device; choose ops='eager' (got a tensor on {x.device.type!r})")


@cache
def _capability(index: int) -> int:
    return torch.cuda.get_device_capability(index)[0]


@cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def looping_programs(x: Tensor) -> int:
    """Programs of a kernel that runs over rows in a loop, on the device that holds ``x``."""
    there = x.device.type == "cuda"
    return LOOPING_PROGRAMS * (_multiprocessors(x.device.index or 0) if there else MULTIPROCESSORS)


def architecture(x: Tensor) -> Architecture:
    """Row of the tile tables for the device that holds ``x``."""
    if interpreting():
        return "interpreter"
    known: dict[int, Architecture] = {9: "hopper", 10: "blackwell"}
    return known.get(_capability(x.device.index or 0), "plain")


def described(x: Tensor) -> Tensor:
    """``x`` itself if descriptors can address its rows, else a contiguous copy, which costs less than other loads.

    They need a base and strides in whole 16 bytes, strides that are not zero, and a contiguous last dimension. Without
    descriptors loads run ahead only where they move 16 bytes, and kernels spill where they do not.
    """
    strides = [stride * x.element_size() for stride in x.stride()[:-1]]
    if x.stride(-1) == 1 and x.data_ptr() % 16 == 0 and all(stride > 0 and stride % 16 == 0 for stride in strides):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def unit_stride(x: Tensor) -> Tensor:
    """``x`` itself if its last dimension is contiguous, else a contiguous copy; other strides are free."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _scratch(size: int, alignment: int, stream: int | None) -> Tensor:
    # The caching allocator aligns to 512 bytes, more than any descriptor asks for.
    return torch.empty(size, dtype=torch.int8, device="cuda")


def launch(
    kernel: Any, grid: tuple[int, ...], tensor: Tensor, *args: Any, descriptors: bool = False, **options: Any
) -> None:
    """Run ``kernel`` on the device of ``tensor``.

    A CUDA graph may capture it: scratch memory comes from torch's allocator, and nothing waits for the device.

    Args:
        kernel: A ``triton.jit`` function.
        grid: Number of programs along each axis; an empty grid launches nothing.
        tensor: Any argument, for its device.
        args: Positional arguments of the kernel.
        descriptors: The kernel builds descriptors on the device, which need scratch memory.
        options: Constants of the kernel and compile options.

    Raises:
        ValueError: The grid is larger than a GPU takes, or the kernel needs more of one than it has.
    """
    if 0 in grid:
        return
    if max(grid[1:], default=0) > MOST_PROGRAMS or math.prod(grid) > MOST_PROGRAMS_IN_ALL:
        raise ValueError(
            f"the batch must fit a grid of {MOST_PROGRAMS} programs along two axes and {MOST_PROGRAMS_IN_ALL} in all; "
            f"got {grid}: split it"
        )
    on_device: AbstractContextManager[Any] = nullcontext()
    if tensor.device.type == "cuda":
        on_device = torch.cuda.device(tensor.device)
        if descriptors:
            # A context variable, so it must be set on every thread; autograd runs backward on one of its own.
            allocate: Callable[[int, int, int | None], Tensor] = _scratch
            triton.set_allocator(allocate)
    with on_device:
        try:
            kernel[grid](*args, **COMPILE_OPTIONS, **options)
        except OutOfResources as error:
            raise ValueError(
                f"{kernel.__module__}.{kernel.__name__} needs {error.required} of {error.name} and this GPU has "
                f"{error.limit}: choose ops='eager'"
            ) from None


def attention_tile(kind: str, x: Tensor) -> Tile:
    """Tile of an attention kernel.

    Args:
        kind: A key of :data:`ATTENTION_TILES`.
        x: Query, for its device, type and head dim.
    """
    row = architecture(x)
    if row == "interpreter":
        return INTERPRETED_TILE
    if x.dtype == torch.float32:
        return FLOAT32_TILES[kind]
    return ATTENTION_TILES[kind][row][max(x.shape[-1], 32)]


def one_pass(x: Tensor) -> bool:
    """Whether attention's backward adds up dq in memory, in no fixed order, and so needs one pass only.

    Args:
        x: Query, for its device, type and head dim.
    """
    if torch.are_deterministic_algorithms_enabled():
        return False
    row = architecture(x)
    tiles = ATTENTION_TILES["backward"].get(row, {})
    return row == "interpreter" or (x.dtype != torch.float32 and max(x.shape[-1], 32) in tiles)


# Full-precision products run on the plain cores, out of registers. Forward fits; backward spills under some compilers.
FLOAT32_TILES = {
    kind: Tile(block_m=32, block_n=32, num_warps=16 if kind.startswith("backward") else 8, num_stages=1)
    for kind in ("forward", "forward_masked", "backward_q", "backward_kv")
}


def _same(tile: Tile, head_dims: tuple[int, ...] = (32, 64)) -> dict[int, Tile]:
    return dict.fromkeys(head_dims, tile)


def _tma(block_m: int, block_n: int, num_warps: int, num_stages: int, *, warp_specialize: bool = False) -> Tile:
    return Tile(
        block_m=block_m, block_n=block_n, num_warps=num_warps, num_stages=num_stages, tma=True,
        warp_specialize=warp_specialize,
    )  # fmt: skip


def _plain(block_m: int, block_n: int, num_warps: int, num_stages: int) -> Tile:
    return Tile(block_m=block_m, block_n=block_n, num_warps=num_warps, num_stages=num_stages)


def _forward(blackwell: dict[int, Tile]) -> dict[str, dict[int, Tile]]:
    """Forward tiles: a mask changes them on Blackwell alone."""
    return {
        "hopper": {
            128: _tma(128, 128, 4, 2, warp_specialize=True),
            **_same(_tma(128, 128, 4, 3, warp_specialize=True)),
        },
        "blackwell": blackwell,
        "plain": {128: _plain(128, 64, 8, 3), **_same(_plain(128, 64, 4, 3))},
    }


# kind -> architecture -> head dim.
ATTENTION_TILES: dict[str, dict[str, dict[int, Tile]]] = {
    "forward": _forward({128: _tma(128, 128, 8, 2), **_same(_tma(128, 128, 8, 3))}),
    "forward_masked": _forward({128: _tma(128, 64, 8, 3), **_same(_tma(128, 64, 8, 3))}),
    # In one pass: only where sums go through descriptors. At head dim 128 compilers spill with 128 keys, and
    # tiles of fewer keys move more to and from the cache than the products they save; such heads take the two passes.
    "backward": {"hopper": _same(_tma(64, 128, 8, 2))},
    "backward_q": {
        "hopper": {128: _tma(128, 64, 8, 2), **_same(_tma(128, 64, 8, 3))},
        "blackwell": {128: _tma(128, 64, 8, 2), **_same(_tma(128, 64, 8, 3))},
        "plain": {128: _plain(64, 32, 4, 2), **_same(_plain(64, 64, 4, 2))},
    },
    "backward_kv": {
        "hopper": {128: _tma(64, 128, 4, 2, warp_specialize=True), **_same(_tma(64, 128, 4, 3, warp_specialize=True))},
        "blackwell": {128: _tma(64, 128, 8, 2), **_same(_tma(64, 128, 8, 3))},
        "plain": {128: _plain(32, 64, 4, 2), **_same(_plain(64, 64, 4, 2))},
    },
}
