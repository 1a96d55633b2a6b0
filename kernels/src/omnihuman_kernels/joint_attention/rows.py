"""Rows of a head, or of a document in a packed sequence: where they start, how a tile of them is loaded and stored."""

# Triton functions take blocks and pointers, for which Python has no types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def document(cu_ptr, batch, length, VARLEN: tl.constexpr):
    """Start and length of a batch item, or of a document of the packed sequence."""
    if VARLEN:
        start = tl.load(cu_ptr + batch)
        length = tl.load(cu_ptr + batch + 1) - start
        # An empty document at the end starts beyond the tensor, where a descriptor must not point.
        return tl.where(length > 0, start, 0).to(tl.int64), length
    else:
        return tl.zeros((), tl.int64), length


@triton.jit
def first_row(ptr, batch, head, start, stride_b, stride_l, stride_n, VARLEN: tl.constexpr):
    """First row of a head, both 64 bits wide; documents of a packed sequence are rows of one batch item."""
    if VARLEN:
        return ptr + start * stride_l + head * stride_n
    else:
        return ptr + batch * stride_b + head * stride_n


@triton.jit
def load_rows(
    desc,
    ptr,
    first,
    length,
    stride_l,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TMA: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Rows ``first`` to ``first + ROWS`` of a head, zeros beyond its end."""
    if TMA:
        tile = desc.load([first, 0])
    else:
        rows = first + tl.arange(0, ROWS)
        at = ptr + rows.to(tl.int64)[:, None] * stride_l + tl.arange(0, HEAD_DIM)[None, :]
        tile = tl.load(at, mask=(rows < length)[:, None], other=0.0)
    if UPCAST:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def describe_rows(ptr, length, stride_l, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, TMA: tl.constexpr):
    """What :func:`load_rows` reads a head through: a descriptor, or with ``TMA`` off the pointer itself."""
    if TMA:
        # A descriptor without rows is not valid; nothing of the row that it then has is stored.
        return tl.make_tensor_descriptor(
            ptr, shape=[tl.maximum(length, 1), HEAD_DIM], strides=[stride_l, 1], block_shape=[ROWS, HEAD_DIM]
        )
    else:
        return ptr


@triton.jit
def store_rows(ptr, tile, first, length, stride_l, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Write rows ``first`` to ``first + ROWS`` of a head, in its dtype; nothing beyond its end."""
    rows = first + tl.arange(0, ROWS)
    at = ptr + rows.to(tl.int64)[:, None] * stride_l + tl.arange(0, HEAD_DIM)[None, :]
    tl.store(at, tile.to(ptr.dtype.element_ty), mask=(rows < length)[:, None])
