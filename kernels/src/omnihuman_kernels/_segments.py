"""Rows grouped by segment: the work of one program, and the sum of what each adds to a modulation.

A *chunk* is a run of rows of one segment of one batch item, so one program reads each modulation row once and can add
up a modulation's gradient in registers. Gradients are written a row a chunk and summed by a second kernel in a fixed
order: the same bits on every run, which atomics would not give.
"""

# Triton functions take blocks and pointers, for which Python has no types, and custom ops return Any.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-any-return, type-arg, no-untyped-call"

from __future__ import annotations

from itertools import accumulate

import triton
import triton.language as tl
from torch import Tensor

from omnihuman_kernels._launch import LENGTHS, launch

FORWARD_ROWS = 4

# Chunks and numbers of a row that a program of the sum takes at a time: a row of 128 bytes, so that even one long
# segment of one sample makes a program for most multiprocessors, and enough rows that memory is busy while each waits.
SUM_ROWS, SUM_WIDTH = 128, 32

# Numbers of a row that a warp holds, at most: more would not fit its registers next to the sums.
PER_WARP = 512


@triton.jit
def chunk_rows(chunk, ends, rows):
    """Segment of a chunk (64 bits), its first row and the one after its last; ``ends``: rows where segments end."""
    segment = 0
    first = 0
    last = 0
    begin = 0
    before = 0
    for index in tl.static_range(len(ends)):
        end = ends[index]
        count = (end - begin + rows - 1) // rows
        inside = (chunk >= before) & (chunk < before + count)
        start = begin + (chunk - before) * rows
        segment = tl.where(inside, index, segment)
        first = tl.where(inside, start, first)
        last = tl.where(inside, tl.minimum(start + rows, end), last)
        before += count
        begin = end
    return tl.cast(segment, tl.int64), first, last


@triton.jit(do_not_specialize=LENGTHS)
def sum_kernel(
    partial_ptr, total_ptr, ends, rows_a_chunk, num_chunks, num_segments, width,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Adds up, per sample and segment, the partial sums that the chunks of rows left."""
    dims = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    batch = tl.program_id(1) // num_segments
    segment = tl.program_id(1) % num_segments
    which = tl.program_id(2)
    begin = 0
    first = 0
    last = 0
    before = 0
    for index in tl.static_range(len(ends)):
        count = (ends[index] - begin + rows_a_chunk - 1) // rows_a_chunk
        first = tl.where(segment == index, before, first)
        last = tl.where(segment == index, before + count, last)
        before += count
        begin = ends[index]
    base = partial_ptr + (which.to(tl.int64) * tl.num_programs(1) // num_segments + batch) * num_chunks * width
    total = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    for start in range(first, last, BLOCK):
        chunk = (start + tl.arange(0, BLOCK)).to(tl.int64)
        inside = (chunk < last)[:, None] & (dims < width)[None, :]
        total += tl.load(base + chunk[:, None] * width + dims[None, :], mask=inside, other=0.0)
    out = (which.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * width
    tl.store(total_ptr + out + dims, tl.sum(total, axis=0), mask=dims < width)


def check_segments(segments: tuple[int, ...] | list[int], length: int) -> None:
    """Reject segments that do not add up to the sequence.

    Raises:
        ValueError: A segment is negative, there is none, or their sum is not ``length``.
    """
    if not segments or min(segments) < 0 or sum(segments) != length:
        raise ValueError(f"segments must be lengths that add up to the {length} tokens; got {tuple(segments)}")


def segment_ends(segments: list[int]) -> tuple[int, ...]:
    """Rows at which segments end."""
    return tuple(accumulate(segments))


def num_chunks(segments: list[int], rows: int) -> int:
    """Chunks of at most ``rows`` rows that cover all segments."""
    return sum(-(-length // rows) for length in segments)


def backward_rows(batch: int, segments: list[int], programs: int) -> int:
    """Rows of a chunk in backward: the fewest for which all samples have at most ``programs`` chunks.

    Each segment may end in a shorter chunk, so that many programs are set aside.
    """
    whole = max(1, programs - batch * len(segments))
    return max(FORWARD_ROWS, -(-batch * sum(segments) // whole))


def row_block(width: int) -> tuple[int, int]:
    """Block that holds a row, and the warps that share it."""
    block = triton.next_power_of_2(width)
    return block, max(1, min(8, block // PER_WARP))


def sum_chunks(partial: Tensor, segments: list[int], rows: int) -> Tensor:
    """Sum the rows that belong to each segment.

    Args:
        partial: ``(n, B, chunks, D)`` float32, a row a chunk.
        segments: Length of each segment.
        rows: Rows of a chunk.

    Returns:
        ``(n, B, len(segments), D)`` float32.
    """
    amount, batch, chunks, width = partial.shape
    total = partial.new_empty((amount, batch, len(segments), width))
    launch(
        sum_kernel, (triton.cdiv(width, SUM_WIDTH), batch * len(segments), amount), partial,
        partial, total, segment_ends(segments), rows, chunks, len(segments), width,
        BLOCK=SUM_ROWS, BLOCK_D=SUM_WIDTH, num_warps=4,
    )  # fmt: skip
    return total
