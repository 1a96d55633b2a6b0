"""Shards: plain WebDataset tars of ``{key}.{member}`` files, and the index that says what they must hold.

The index is the root of trust: sha256 and size of each tar, and offset, size and sha256 of each member. Only members of
the names below exist, each with a largest size; nothing in a shard is unpickled, executed or written to a path.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from omnihuman_train.data.manifest import KEY, read_lines, write_lines

INDEX = "index.jsonl"
FORMAT = 1
CLIPS, STATES = "clips", "states"

# Members that a sample may have, with the most bytes that each may take.
MEMBERS: Mapping[str, int] = {
    "mp4": 2 * 2**30,
    "flac": 2**28,
    "json": 2**20,
    "reference.png": 2**26,
    "pose.safetensors": 2**28,
    "latents.safetensors": 2 * 2**30,
    "audio.safetensors": 2**30,
    "text.safetensors": 2**28,
}
BLOCK = 512
_SHARD_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,99}\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class BrokenShardError(ValueError):
    """A shard is missing, cut, changed, or holds what no shard may hold."""


class BrokenSampleError(ValueError):
    """One sample cannot be read or decoded; the others of its shard can."""


class Span(NamedTuple):
    """Bytes of a member in its tar."""

    offset: int
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardEntry:
    """What the index says of a shard.

    Attributes:
        name: File name.
        size: Bytes of the file.
        sha256: Of the whole file.
        samples: Members of each sample by key, in the order of the tar.
    """

    name: str
    size: int
    sha256: str
    samples: Mapping[str, Mapping[str, Span]]

    def to_row(self) -> dict[str, Any]:
        """As a row of the index; samples stay in order."""
        samples = [[key, {name: list(span) for name, span in members.items()}] for key, members in self.samples.items()]
        return {"name": self.name, "size": self.size, "sha256": self.sha256, "samples": samples}


@dataclass(frozen=True, kw_only=True)
class Index:
    """The index of a data set.

    Attributes:
        kind: ``clips`` (video and sound) or ``states`` (what they were encoded to).
        recipe: How the shards were made.
        broken: Clips that could not be taken in, with the reason.
        shards: In order.
    """

    kind: str
    recipe: Mapping[str, Any]
    broken: Mapping[str, str]
    shards: tuple[ShardEntry, ...]


def split_name(name: str) -> tuple[str, str]:
    """Key and member of a file name in a shard.

    Raises:
        ValueError: a folder, an absolute or ``..`` path, no sha1 for a key, or a member that is not allowed.
    """
    key, _, member = name.partition(".")
    if not KEY.fullmatch(key) or member not in MEMBERS:
        raise ValueError(f"member {name[:120]!r} is not allowed; names are <sha1>.<one of {', '.join(MEMBERS)}>")
    return key, member


def write_tar(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> ShardEntry:
    """Write a shard, whole or not at all; the same samples give the same bytes.

    Args:
        path: Target.
        samples: Key and members of each.

    Raises:
        ValueError: a name that is not allowed or a member that is too large.
        OSError: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.part")
    digest, position = hashlib.sha256(), 0
    entries: dict[str, dict[str, Span]] = {}
    try:
        with partial.open("wb") as file:

            def put(data: bytes) -> None:
                nonlocal position
                file.write(data)
                digest.update(data)
                position += len(data)

            for key, members in samples:
                if key in entries:
                    raise ValueError(f"{path}: sample {key} is there twice")
                entries[key] = {}
                for member, data in members.items():
                    split_name(f"{key}.{member}")
                    if len(data) > MEMBERS[member]:
                        raise ValueError(f"{key}.{member}: {len(data)} bytes, at most {MEMBERS[member]} are allowed")
                    info = tarfile.TarInfo(f"{key}.{member}")
                    info.size = len(data)
                    put(info.tobuf(tarfile.USTAR_FORMAT))
                    entries[key][member] = Span(position, len(data), hashlib.sha256(data).hexdigest())
                    put(data)
                    put(bytes(-len(data) % BLOCK))
            put(bytes(2 * BLOCK))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return ShardEntry(name=path.name, size=position, sha256=digest.hexdigest(), samples=entries)


def scan_tar(path: Path) -> dict[str, tuple[int, int]]:
    """Offset and size of every member of a tar, by file name.

    Raises:
        BrokenShardError: the tar is missing or damaged, or holds a link, a device, a folder, a name that is not
            allowed, a member twice, one that is too large, or extended headers.
    """
    found: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.pax_headers:
                    raise BrokenShardError(
                        f"{path}: member {member.name[:120]!r} is no plain file (a link, a folder or extended header)"
                    )
                try:
                    _, kind = split_name(member.name)
                except ValueError as error:
                    raise BrokenShardError(f"{path}: {error}") from None
                if member.size > MEMBERS[kind]:
                    raise BrokenShardError(
                        f"{path}: member {member.name} has {member.size} bytes, at most {MEMBERS[kind]} are allowed"
                    )
                if member.name in found:
                    raise BrokenShardError(f"{path}: member {member.name} is there twice")
                found[member.name] = (member.offset_data, member.size)
    except FileNotFoundError:
        raise BrokenShardError(f"{path}: the shard is missing") from None
    except (tarfile.TarError, OSError, EOFError) as error:
        raise BrokenShardError(f"{path}: damaged or truncated tar ({error})") from error
    return found


def read_index(folder: Path) -> Index:
    """Read and check the index of a data set; no shard is opened.

    Raises:
        ValueError: no index, another format, a missing line or key, or an entry that cannot be.
    """
    path = folder / INDEX
    lines = read_lines(path)
    where, header = next(lines, (str(path), None))
    if not isinstance(header, Mapping) or header.get("format") != FORMAT:
        raise ValueError(f"{where}: must be a header with format {FORMAT}; update omnihuman-train or pack again")
    missing = [name for name in ("kind", "recipe", "broken", "shards") if name not in header]
    if missing:
        raise ValueError(f"{where}: missing key {missing[0]!r}; pack again")
    if header["kind"] not in (CLIPS, STATES) or not isinstance(header["recipe"], Mapping):
        raise ValueError(f"{where}: kind must be {CLIPS!r} or {STATES!r}, got {header['kind']!r}")
    shards = tuple(parse_shard(row, place) for place, row in lines)
    if len(shards) != header["shards"]:
        raise ValueError(f"{path}: names {len(shards)} shards, its header {header['shards']}; the file was cut")
    for values, what in (
        ([shard.name for shard in shards], "shard"),
        ([key for s in shards for key in s.samples], "sample"),
    ):
        if len(set(values)) != len(values):
            twice = next(value for i, value in enumerate(values) if value in values[:i])
            raise ValueError(f"{path}: {what} {twice} is there twice")
    return Index(kind=header["kind"], recipe=header["recipe"], broken=dict(header["broken"]), shards=shards)


def write_index(folder: Path, index: Index) -> None:
    """Write the index, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    header = {
        "format": FORMAT,
        "kind": index.kind,
        "recipe": index.recipe,
        "broken": index.broken,
        "shards": len(index.shards),
    }
    write_lines(folder / INDEX, [header, *(shard.to_row() for shard in index.shards)])


def parse_shard(row: Any, where: str) -> ShardEntry:
    """One row of the index.

    Raises:
        ValueError: a key is missing, or a name, an offset or a size cannot be.
    """
    try:
        name, size, sha256, samples = row["name"], int(row["size"]), row["sha256"], row["samples"]
        if not _SHARD_NAME.fullmatch(name):
            raise ValueError(f"shard name {name!r} must be a plain file name that ends in .tar")
        if not _SHA256.fullmatch(sha256):
            raise ValueError("sha256 must be 64 hex digits")
        entries: dict[str, dict[str, Span]] = {}
        for key, members in samples:
            entries[key] = {member: Span(*values) for member, values in members.items()}
            for member, span in entries[key].items():
                split_name(f"{key}.{member}")
                inside = span.offset >= BLOCK and 0 <= span.size <= MEMBERS[member] and span.offset + span.size <= size
                if not inside or not _SHA256.fullmatch(span.sha256):
                    raise ValueError(f"{key}.{member}: offset, size or sha256 cannot be")
    except KeyError as error:
        raise ValueError(f"{where}: missing key {error}; pack again") from None
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{where}: no row of an index ({error})") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return ShardEntry(name=name, size=size, sha256=sha256, samples=entries)
