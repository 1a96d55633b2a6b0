"""What a data set says of its samples: one line of JSON each, labels that a person may edit.

Where the bytes of a sample are is not said here but in the index (:mod:`omnihuman_train.data.shards`), which nobody
edits. A line that is taken out excludes a sample; a flag that is changed changes what the sample trains.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from omnihuman_core.checkpoint import create_part

MANIFEST = "manifest.jsonl"
KEY = re.compile(r"[0-9a-f]{40}")
# A line of either file of a data set; a longer one is something else under its name.
MAX_LINE_BYTES = 64 * 2**20
_TYPES = {"str": str, "int": int, "float": (int, float), "bool": bool}


class Bucket(NamedTuple):
    """Samples of one shape: pixel frames, height and width."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRecord:
    """One sample.

    Attributes:
        key: sha1 of source, path and span, 40 hex digits: the name of the sample's files.
        source: Where the clip comes from.
        start: First moment of the span in the source, in seconds.
        frames: Pixel frames ``T``.
        height: Pixels ``H``.
        width: Pixels ``W``.
        fps: Frames per second.
        has_text: Whether there is a caption.
        has_audio: Whether the voice belongs to the mouth (paper section 3.3: lip sync is good enough).
        has_pose: Whether the keypoints, hands among them, can be trusted.
        has_mouth: Whether the true opening of the mouth is known, as it is for drawn characters only.
        licence: What may be done with it; an SPDX name where there is one.
    """

    key: str
    source: str
    start: float
    frames: int
    height: int
    width: int
    fps: float
    has_text: bool
    has_audio: bool
    has_pose: bool
    has_mouth: bool
    licence: str

    @property
    def bucket(self) -> Bucket:
        """Shape of the clip."""
        return Bucket(self.frames, self.height, self.width)


_FIELDS = {field.name: str(field.type) for field in fields(SampleRecord)}


def parse_record(row: Any, where: str) -> SampleRecord:
    """One row of a manifest; keys that are not known are left alone, for what others note there.

    Args:
        row: Parsed JSON.
        where: File and line, for messages.

    Raises:
        ValueError: a key is missing or its value cannot be.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: must be a JSON object, got {type(row).__name__}")
    for name, kind in _FIELDS.items():
        if name not in row:
            raise ValueError(f"{where}: missing key {name!r} ({kind}); add it or pack the clips again")
        value = row[name]
        # True is an integer to Python.
        if not isinstance(value, _TYPES[kind]) or (kind != "bool" and isinstance(value, bool)):  # type: ignore[arg-type]
            raise ValueError(f"{where}: {name} must be {kind}, got {value!r}")
    if not KEY.fullmatch(row["key"]):
        raise ValueError(f"{where}: key must be 40 hex digits (a sha1), got {row['key']!r}")
    if min(row["frames"], row["height"], row["width"]) < 1 or not 0 < row["fps"] < 1000:
        raise ValueError(f"{where}: frames, height, width and fps must be positive, fps below 1000")
    if not math.isfinite(row["start"]):
        raise ValueError(f"{where}: start must be finite, got {row['start']!r}")
    if not row["licence"]:
        raise ValueError(f"{where}: licence is empty; say what may be done with the clip")
    record = {name: row[name] for name in _FIELDS}
    # A million samples share a few names of licences.
    record["licence"] = sys.intern(record["licence"])
    return SampleRecord(**record)


def read_manifest(path: Path) -> list[SampleRecord]:
    """Records of a manifest, in order.

    Raises:
        ValueError: the file is missing, has no sample, one twice, or a line that :func:`parse_record` refuses.
    """
    records = [parse_record(row, where) for where, row in read_lines(path)]
    if not records:
        raise ValueError(f"{path}: has no sample")
    seen: set[str] = set()
    for record in records:
        if record.key in seen:
            raise ValueError(f"{path}: sample {record.key} is there twice; take one line out")
        seen.add(record.key)
    return records


def write_manifest(path: Path, records: Iterable[SampleRecord]) -> None:
    """Write a manifest, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    write_lines(path, map(asdict, records))


def read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Parsed lines of a JSON-lines file, each with the place to name in a message.

    Raises:
        ValueError: the file is missing or a line is no JSON.
    """
    if not path.is_file():
        raise ValueError(
            f"{path}: not found; this is no data set of `omnihuman-train data pack`, or it is not finished"
        )
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            where = f"{path} line {number}"
            try:
                yield where, json.loads(line)
            except (ValueError, RecursionError):
                raise ValueError(f"{where}: damaged, no JSON") from None


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write JSON lines, whole or not at all; the same rows give the same bytes.

    Raises:
        OSError: the file cannot be written; one that was there stays as it was.
    """
    handle, temporary = create_part(path)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, sort_keys=True, separators=(",", ":")) + "\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
