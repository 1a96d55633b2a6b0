"""Tiles of attention that can be trusted on this GPU, found before anything else runs with them, and other ones tried.

A kernel of attention at one head dim is a *kernel* here, named as in ``forward 128``: a kind of the table of tiles and
a head dim.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from report import first_line
from torch import Tensor

from omnihuman_kernels import _launch

Row = dict[str, Any]
Chosen = dict[str, Row | None]

# Of another length than any multiple of a tile, so that tails are computed.
BATCH, LENGTH, HEADS = 2, 1091, 2
HEAD_DIMS = (128, 64)

# Of one tensor, by its norm: above what rounding to bfloat16 makes, below what one wrong tile of a hundred makes.
MOST_ERROR = 1e-2
SILENCE = 60.0

# Other tiles for heads of 128, by kind, the most promising first: measured next to what the table has, so that it can
# be corrected, and what attention falls back on where the table's are wrong. Those of "backward" run in one pass, next
# to the table's two; decision 21 says what compilers make of them.
ALTERNATIVES = {
    "backward_kv": [
        _launch.Tile(block_m=64, block_n=128, num_warps=8, num_stages=2, tma=True),
        _launch.Tile(block_m=32, block_n=128, num_warps=8, num_stages=2, tma=True),
    ],
    "backward_q": [
        _launch.Tile(block_m=128, block_n=64, num_warps=8, num_stages=2, tma=True),
        _launch.Tile(block_m=128, block_n=128, num_warps=8, num_stages=2, tma=True),
    ],
    "forward": [
        _launch.Tile(block_m=128, block_n=128, num_warps=8, num_stages=2, tma=True),
        _launch.Tile(block_m=128, block_n=64, num_warps=8, num_stages=3, tma=True),
        _launch.Tile(block_m=128, block_n=64, num_warps=4, num_stages=3, tma=True, warp_specialize=True),
    ],
    "backward": [
        _launch.Tile(block_m=64, block_n=64, num_warps=8, num_stages=2, tma=True),
        _launch.Tile(block_m=64, block_n=128, num_warps=8, num_stages=2, tma=True),
    ],
}


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda")


def table(kind: str) -> dict[int, _launch.Tile]:
    """The tiles of a kind on this GPU, by head dim; empty where the kind is not used."""
    return _launch.ATTENTION_TILES[kind].setdefault(_launch.architecture(noise(0)), {})


def plain(kind: str, head_dim: int) -> _launch.Tile | None:
    """The tile that asks least of a GPU; None for one pass backward, which attention does without."""
    return _launch.ATTENTION_TILES[kind].get("plain", {}).get(head_dim)


def put(kind: str, head_dim: int, tile: _launch.Tile | None) -> None:
    """Make ``tile`` the table's own in this process; None takes the kind out."""
    table(kind).pop(head_dim, None)
    table(kind).update({} if tile is None else {head_dim: tile})


def use(chosen: Chosen) -> None:
    """Replace tiles of the table by the ones that :func:`choose` found."""
    for kernel, tile in chosen.items():
        kind, head_dim = kernel.split()
        put(kind, int(head_dim), None if tile is None else _launch.Tile(**tile))


def kernels() -> list[str]:
    """Every kernel of the table."""
    every = ((kind, head_dim) for head_dim in HEAD_DIMS for kind in _launch.ATTENTION_TILES)
    return [f"{kind} {head_dim}" for kind, head_dim in every if head_dim in table(kind)]


def has_alternatives() -> bool:
    """Whether the other tiles are meant for this GPU."""
    return _launch.architecture(noise(0)) == "hopper"


def candidates(kernel: str) -> list[Row | None]:
    """What may take the place of the table's tile, in order; the last is the plain one."""
    kind, head_dim = kernel.split()
    others = ALTERNATIVES.get(kind, []) if has_alternatives() else []
    tiles: list[_launch.Tile | None] = [*others, plain(kind, int(head_dim))]
    usual = table(kind).get(int(head_dim))
    return [None if tile is None else asdict(tile) for tile in tiles if tile != usual]


@contextmanager
def alone(kind: str, head_dim: int, tile: _launch.Tile | None) -> Iterator[None]:
    """``tile`` among plain ones, so that what goes wrong is its fault."""
    before = {other: table(other).get(head_dim) for other in _launch.ATTENTION_TILES}
    try:
        for other in _launch.ATTENTION_TILES:
            put(other, head_dim, tile if other == kind else plain(other, head_dim))
        yield
    finally:
        for other, usual in before.items():
            put(other, head_dim, usual)


def relative_error(got: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """The largest error of a tensor, by its norm; infinite for what is not a number."""
    errors = [float((a.double() - b.double()).norm() / b.double().norm()) for a, b in zip(got, expected, strict=True)]
    return max((error if error == error else float("inf")) for error in errors)


def error_of(kind: str, head_dim: int, tile: _launch.Tile | None, dtype: torch.dtype = torch.bfloat16) -> float:
    """Relative error of a tile against the formula in float32, on short sequences."""
    from omnihuman_kernels.joint_attention import joint_attention
    from tests.kernels import references
    from tests.kernels.agreement import gradients

    inputs = list(noise(3, BATCH, LENGTH, HEADS, head_dim).to(dtype))
    upstream = [noise(BATCH, LENGTH, HEADS, head_dim).to(dtype)]
    errors = []
    # Forward has a way of its own with a key mask.
    for mask in (None, noise(BATCH, LENGTH) > 0) if kind.startswith("forward") else (None,):
        exact = gradients(functools.partial(references.attention, mask=mask), [x.float() for x in inputs], upstream)
        with alone(kind, head_dim, tile):
            if kind.startswith("forward"):
                got = [joint_attention(*inputs, mask=mask)]
            else:
                got = gradients(joint_attention, inputs, upstream)
        errors.append(relative_error(got, exact[: len(got)]))
    return max(errors)


def check(names: list[str]) -> Iterator[Row]:
    """Check kernels with the tiles of the table, one after the other, up to the first that is wrong.

    After an error of the GPU nothing more can run in a process, so it ends there.
    """
    for kernel in names:
        kind, head_dim = kernel.split()
        tile = table(kind).get(int(head_dim))
        row: Row = {"op": "joint_attention", "kernel": kernel, "tile": None if tile is None else asdict(tile)}
        yield {**row, "status": "begins"}
        try:
            error = error_of(kind, int(head_dim), tile)
            problem = "" if error < MOST_ERROR else f"relative error {error:.1e}, allowed {MOST_ERROR:.0e}"
        except Exception as failure:
            traceback.print_exc()
            problem = first_line(failure)
        if problem:
            yield {**row, "status": "failed", "problem": problem}
            return
        yield {**row, "status": "agrees", "error": error}


def blamed(rows: Iterable[Row]) -> Generator[Row, None, None]:
    """The rows of a process, its own end laid to the kernel that it was at."""
    begun: Row = {}
    for row in rows:
        if row["status"] == "begins":
            begun = {key: row[key] for key in ("op", "kernel", "tile")}
        yield row if "kernel" in row else row | begun


def choose(names: list[str], attempt: Callable[[list[str], Chosen], Iterable[Row] | None]) -> Chosen:
    """Tiles for the kernels whose own are wrong, crash or hang on this GPU.

    Args:
        names: Kernels to check.
        attempt: Runs :func:`check` in a process with the tiles chosen so far and gives its rows; None out of time.

    Returns:
        Kernel to tile, of those that need another than the table's. The plain one where none agreed.
    """
    chosen: Chosen = {}
    left, others = list(names), {name: candidates(name) for name in names}
    while left and (rows := attempt(left, chosen)) is not None:
        begun = ""
        for row in rows:
            begun = row.get("kernel", begun)
            if row["status"] == "agrees":
                left.remove(row["kernel"])
        if not begun:
            # No process starts: that is no tile's fault.
            break
        if begun in left:
            if others[begun]:
                chosen[begun] = others[begun].pop(0)
            else:
                left.remove(begun)
    return chosen


def try_tile(kind: str, tile: _launch.Tile) -> Row:
    """Time another tile next to the one in use, after checking that it gives what torch's attention gives."""
    from measure import interleaved, prepare

    from omnihuman_kernels.joint_attention import joint_attention

    usual = table(kind).get(128)
    direction = "forward" if kind == "forward" else "backward"
    row: Row = {
        "shape": "L=16384 N=24 K=128",
        "dtype": "bfloat16",
        "direction": direction,
        "kind": kind,
        "tile": asdict(tile),
    }

    def with_tile(chosen: _launch.Tile | None, call: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            put(kind, 128, chosen)
            try:
                return call()
            finally:
                put(kind, 128, usual)

        return run

    try:
        short = error_of(kind, 128, tile)
        if not short < MOST_ERROR:
            raise ValueError(f"relative error {short:.1e} at L={LENGTH}, allowed {MOST_ERROR:.0e}")
        inputs = list(noise(3, 1, 16384, 24, 128).bfloat16())
        upstream = [noise(*inputs[0].shape).bfloat16()]
        call = prepare(joint_attention, inputs, 3, direction, upstream)
        truth = _tensors(prepare(_torch_attention, inputs, 3, direction, upstream)())
        candidates = {"tile": with_tile(tile, call), "table": with_tile(usual, call)}
        errors = {name: relative_error(_tensors(run()), truth) for name, run in candidates.items()}
        if not errors["tile"] < MOST_ERROR:
            raise ValueError(f"relative error {errors['tile']:.1e}, allowed {MOST_ERROR:.0e}")
        # What is wrong is not timed.
        seconds = interleaved({n: f for n, f in candidates.items() if errors[n] < MOST_ERROR}, seconds=2.0)
    except Exception as error:
        traceback.print_exc()
        return {**row, "status": "alternative failed", "problem": first_line(error)}
    finally:
        put(kind, 128, usual)
    row |= {"status": "alternative", "seconds": seconds["tile"], "error": errors["tile"]}
    return row | ({"table_seconds": seconds["table"]} if "table" in seconds else {})


def _tensors(result: Any) -> tuple[Tensor, ...]:
    return tuple(result) if isinstance(result, tuple) else (result,)


def _torch_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from cases import sdpa

    return sdpa(q, k, v)
