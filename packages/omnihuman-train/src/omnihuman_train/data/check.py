"""Comparing a data set with its index: every byte of every shard, every member, every sample with the manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from omnihuman_train.data import media
from omnihuman_train.data.manifest import MANIFEST, SampleRecord, read_manifest
from omnihuman_train.data.members import load_tensors
from omnihuman_train.data.shards import (
    BrokenSampleError,
    BrokenShardError,
    ShardEntry,
    read_index,
    scan_tar,
)

_CHUNK = 2**22


@dataclass(kw_only=True)
class CheckReport:
    """What was found.

    Attributes:
        shards: Shards that were looked at.
        samples: Samples that were looked at.
        broken_shards: What is wrong, by name of the shard.
        broken_samples: What is wrong, by key; those of broken shards that can be told.
        excluded: Samples that the manifest leaves out.
    """

    shards: int = 0
    samples: int = 0
    broken_shards: dict[str, str] = field(default_factory=dict)
    broken_samples: dict[str, str] = field(default_factory=dict)
    excluded: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is broken."""
        return not (self.broken_shards or self.broken_samples)


def check_data(folder: Path, *, decode: bool, progress: Callable[[int], None]) -> CheckReport:
    """Check a data set.

    Args:
        folder: Packed or encoded data set.
        decode: Also decode every member and compare it with the manifest.
        progress: Called with the number of samples that were checked.

    Raises:
        ValueError: index or manifest cannot be read, or the manifest names a sample that the index does not.
    """
    index, records = read_index(folder), {record.key: record for record in read_manifest(folder / MANIFEST)}
    known = {key for shard in index.shards for key in shard.samples}
    if stray := [key for key in records if key not in known]:
        raise ValueError(f"{folder / MANIFEST}: sample {stray[0]} is in no shard; take the line out")
    report = CheckReport(excluded=len(known) - len(records))
    for shard in index.shards:
        report.shards += 1
        report.samples += len(shard.samples)
        try:
            _check_shard(folder / shard.name, shard)
        except BrokenShardError as error:
            report.broken_shards[shard.name] = str(error)
        for key, reason in _broken_samples(folder / shard.name, shard, records, decode):
            report.broken_samples[key] = f"{shard.name}: {reason}"
        progress(len(shard.samples))
    return report


def _check_shard(path: Path, shard: ShardEntry) -> None:
    try:
        size, digest = path.stat().st_size, hashlib.sha256()
        if size != shard.size:
            raise BrokenShardError(f"{path}: has {size} bytes, the index says {shard.size}; cut or changed")
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except FileNotFoundError:
        raise BrokenShardError(f"{path}: the shard is missing") from None
    except OSError as error:
        raise BrokenShardError(f"{path}: cannot be read ({error.strerror})") from error
    found = scan_tar(path)
    named = {
        f"{key}.{name}": (span.offset, span.size)
        for key, members in shard.samples.items()
        for name, span in members.items()
    }
    if found != named:
        odd = sorted(name for name in found.keys() | named.keys() if found.get(name) != named.get(name))
        raise BrokenShardError(f"{path}: {odd[0]} is not where the index says, or only in one of both")
    if digest.hexdigest() != shard.sha256:
        raise BrokenShardError(f"{path}: sha256 is {digest.hexdigest()}, the index says {shard.sha256}")


def _broken_samples(
    path: Path, shard: ShardEntry, records: dict[str, SampleRecord], decode: bool
) -> Iterator[tuple[str, str]]:
    try:
        file = path.open("rb")
    except OSError:
        return
    with file:
        for key, members in shard.samples.items():
            try:
                for name, span in members.items():
                    file.seek(span.offset)
                    data = file.read(span.size)
                    if len(data) != span.size or hashlib.sha256(data).hexdigest() != span.sha256:
                        raise BrokenSampleError(f"{name} is not what the index says (sha256)")
                    if decode and key in records:
                        _decode(name, data, records[key])
            except BrokenSampleError as error:
                yield key, str(error)


def _decode(name: str, data: bytes, record: SampleRecord) -> None:
    """Decode a member and compare it with the manifest.

    Raises:
        BrokenSampleError: it cannot be decoded or is of another size.
    """
    if name == "mp4":
        media.decode_video(data, torch.empty(*record.bucket, 3, dtype=torch.uint8))
    elif name == "flac":
        media.decode_sound(data, samples=media.sound_samples(record.frames, record.fps))
    elif name == "reference.png":
        media.decode_picture(data, height=record.height, width=record.width)
    elif name == "json":
        try:
            json.loads(data)
        except (ValueError, RecursionError) as error:
            raise BrokenSampleError(f"{name} is no JSON ({error})") from error
    else:
        for key, value in load_tensors(data, name).items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise BrokenSampleError(f"{name}: {key} holds NaN or infinite values")
