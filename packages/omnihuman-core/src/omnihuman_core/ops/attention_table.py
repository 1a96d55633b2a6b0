"""Measured times of attention backends: rows of data, and the files that hold them.

A file is JSON: ``{"format": 1, "rows": [...]}``, each row an :class:`AttentionRow`. This package ships one; the command
``omnihuman-core bench-attention`` writes another for the user's machine.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from omnihuman_core.config import from_table

FORMAT = 1
# No table comes near this; a larger file is something else under the wrong name.
MAX_BYTES = 16 << 20

# What was timed: the forward alone, or forward and backward together as a training step runs them.
Direction = Literal["forward", "training"]


class TableError(ValueError):
    """A table of attention times cannot be read or written; the message names the file and the fix."""


@dataclass(frozen=True, kw_only=True)
class AttentionRow:
    """One measured time of a backend that agreed with the reference.

    Attributes:
        device: Name of the device, as :func:`~omnihuman_core.ops.attention_backends.describe_target` gives it.
        dtype: Such as ``bfloat16``.
        batch: Batch size ``B`` of the measurement.
        length: Queries and keys ``L``.
        heads: Heads ``N``.
        head_dim: Width ``K`` of a head.
        masked: Whether a key mask was given.
        direction: What was timed.
        backend: Name of the backend.
        seconds: Median time of one call.
        torch: Version of torch.
        date: Day of the measurement, ``YYYY-MM-DD``.
    """

    device: str
    dtype: str
    batch: int
    length: int
    heads: int
    head_dim: int
    masked: bool
    direction: Direction
    backend: str
    seconds: float
    torch: str
    date: str

    def __post_init__(self) -> None:
        for name in ("batch", "length", "heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (self.seconds > 0 and math.isfinite(self.seconds)):
            raise ValueError(f"seconds must be a positive number, got {self.seconds}")


@dataclass(frozen=True, kw_only=True)
class _File:
    format: int
    rows: tuple[AttentionRow, ...]


def user_table() -> Path:
    """Where ``omnihuman-core bench-attention`` writes the times of this machine.

    Raises:
        RuntimeError: the account has no home directory.
    """
    return Path.home() / ".omnihuman" / "attention.json"


def known_rows(user: Path | None = None) -> tuple[AttentionRow, ...]:
    """Shipped rows and the user's; where both know a device and dtype, the user's alone count.

    Args:
        user: The user's table, which may be missing; None takes :func:`user_table`, if there is a home directory.

    Raises:
        TableError: a table is there and cannot be read.
    """
    shipped = _parse(files("omnihuman_core.ops").joinpath("attention.json").read_text(encoding="utf-8"), "shipped")
    try:
        user = user_table() if user is None else user
        there = user.exists()
    except (RuntimeError, PermissionError):
        # An account without a home directory, as in containers, or one whose home belongs to another.
        return shipped
    return merge(shipped, read_table(user) if there else ())


def read_table(path: Path) -> tuple[AttentionRow, ...]:
    """Rows of a file.

    Raises:
        TableError: missing, too large, no JSON, or a field is missing, unknown or out of range.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise TableError(f"{path}: is larger than {MAX_BYTES >> 20} MiB and no table of attention times")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise TableError(f"{path}: is no text; {_FIX}") from None
    return _parse(text, str(path))


def merge(old: Iterable[AttentionRow], new: Sequence[AttentionRow]) -> tuple[AttentionRow, ...]:
    """``new``, and the rows of ``old`` for devices and dtypes that ``new`` says nothing of."""
    replaced = {(row.device, row.dtype) for row in new}
    return (*(row for row in old if (row.device, row.dtype) not in replaced), *new)


def write_table(path: Path, rows: Sequence[AttentionRow]) -> None:
    """Write a table, whole or not at all.

    Raises:
        TableError: the place cannot be written to.
    """
    text = json.dumps({"format": FORMAT, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
    with _staging(path) as staged:
        staged.write_text(text, encoding="utf-8")
        os.replace(staged, path)


def check_place(path: Path) -> None:
    """Find out, before the work, whether a table can be written; permissions do not tell, only a file does.

    Raises:
        TableError: as :func:`write_table`.
    """
    if path.is_dir():
        raise TableError(f"{path}: is a folder; name a file with --out")
    with _staging(path):
        pass


@contextmanager
def _staging(path: Path) -> Iterator[Path]:
    """An empty file beside ``path`` that is gone afterwards, unless it was moved."""
    # It brings safetensors, which ops do without.
    from omnihuman_core.checkpoint import create_part

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = create_part(path)
        os.close(handle)
        try:
            yield part
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise TableError(f"{path}: cannot be written ({error.strerror}); choose another place with --out") from None


_FIX = "delete it, or run omnihuman-core bench-attention again after that"


def _parse(text: str, where: str) -> tuple[AttentionRow, ...]:
    try:
        table = json.loads(text)
    except ValueError as error:
        raise TableError(f"{where}: is no JSON ({error}); {_FIX}") from None
    if not isinstance(table, dict) or table.get("format") != FORMAT:
        raise TableError(f"{where}: is no table of attention times in format {FORMAT}; {_FIX}")
    try:
        return from_table(_File, table).rows
    except (ValueError, TypeError) as error:
        raise TableError(f"{where}: {error}; {_FIX}") from None
