"""A data set on disk: index, manifest and random access to the members of its shards."""

from __future__ import annotations

import hashlib
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from omnihuman_train.data.manifest import MANIFEST, read_manifest
from omnihuman_train.data.shards import BLOCK, BrokenSampleError, BrokenShardError, Span, read_index

# Files that a thread keeps open.
_OPEN_FILES = 32


class ShardSet:
    """Samples of a data set by number, in the order of the manifest.

    Members are read by their offsets, from any number of threads.

    Args:
        folder: Folder of a packed or encoded data set.
        licences: Take these licences alone; None takes all.

    Attributes:
        index: The index.
        records: Samples.
        shard_of: Number of the shard that holds each sample.

    Raises:
        ValueError: index or manifest cannot be read, or the manifest names a sample that no shard holds.
        BrokenShardError: a shard is missing, or has another size than the index says.
    """

    def __init__(self, folder: Path, *, licences: Sequence[str] | None = None) -> None:
        self.folder = folder
        self.index = read_index(folder)
        records = read_manifest(folder / MANIFEST)
        place = {key: number for number, shard in enumerate(self.index.shards) for key in shard.samples}
        for record in records:
            if record.key not in place:
                raise ValueError(f"{folder / MANIFEST}: sample {record.key} is in no shard; take the line out")
        if licences is not None:
            present = sorted({record.licence for record in records})
            if unknown := sorted(set(licences) - set(present)):
                raise ValueError(f"{folder}: no sample has the licence {unknown[0]!r}; there are {', '.join(present)}")
            records = [record for record in records if record.licence in licences]
        # Manifests may be edited and sorted; reading in the order of the tars is what disks like.
        order = {key: i for i, key in enumerate(key for shard in self.index.shards for key in shard.samples)}
        self.records = sorted(records, key=lambda record: order[record.key])
        self.shard_of = [place[record.key] for record in self.records]
        for shard in self.index.shards:
            _check_size(folder / shard.name, shard.size)
        self._files = threading.local()

    def __len__(self) -> int:
        return len(self.records)

    def members(self, sample: int) -> dict[str, Span]:
        """Members of a sample."""
        return dict(self.index.shards[self.shard_of[sample]].samples[self.records[sample].key])

    def read(self, sample: int, member: str, *, verify: bool = False) -> bytes:
        """Bytes of one member.

        Raises:
            BrokenSampleError: the sample has no such member, or (verify) its bytes are not those of the index.
            BrokenShardError: the shard ends before it, or holds another file there.
        """
        span = self._span(sample, member)
        data = bytearray(span.size)
        self.read_into(sample, member, [memoryview(data)], verify=verify)
        return bytes(data)

    def read_into(self, sample: int, member: str, buffers: Sequence[memoryview], *, verify: bool = False) -> None:
        """Fill ``buffers`` with the bytes of one member in one call to the system, without a copy in between.

        Raises:
            BrokenSampleError: as :meth:`read`, or the member has another size than the buffers.
            BrokenShardError: as :meth:`read`.
        """
        span = self._span(sample, member)
        shard, key = self.index.shards[self.shard_of[sample]], self.records[sample].key
        if sum(len(buffer) for buffer in buffers) != span.size:
            raise BrokenSampleError(f"{key}.{member}: {span.size} bytes, the other samples of its bucket differ")
        header = bytearray(BLOCK)
        try:
            count = os.preadv(self._file(shard.name).descriptor, [header, *buffers], span.offset - BLOCK)
        except OSError as error:
            raise BrokenShardError(f"{self.folder / shard.name}: cannot be read ({error.strerror})") from error
        name = f"{key}.{member}\0".encode()
        if count != BLOCK + span.size or header[: len(name)] != name:
            raise BrokenShardError(
                f"{self.folder / shard.name}: does not hold {key}.{member} where the index says; cut or changed, "
                "run `omnihuman-train data check`"
            )
        if verify:
            digest = hashlib.sha256()
            for buffer in buffers:
                digest.update(buffer)
            if digest.hexdigest() != span.sha256:
                raise BrokenSampleError(f"{key}.{member}: its bytes are not those that the index names (sha256)")

    def _span(self, sample: int, member: str) -> Span:
        key = self.records[sample].key
        members = self.index.shards[self.shard_of[sample]].samples[key]
        if member not in members:
            raise BrokenSampleError(f"{key}: has no {member}, only {', '.join(members)}")
        return members[member]

    def _file(self, name: str) -> _File:
        # Each thread has its own, so that none is closed while another one reads.
        files: OrderedDict[str, _File] | None = getattr(self._files, "open", None)
        if files is None:
            files = self._files.open = OrderedDict()
        if name in files:
            files.move_to_end(name)
            return files[name]
        file = files[name] = _File(self.folder / name)
        if len(files) > _OPEN_FILES:
            files.popitem(last=False)
        return file


class _File:
    """An open file that closes when nobody holds it, as those of a thread do when the thread ends."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        # Not __del__: at the end of the process the module may be gone before the file.
        weakref.finalize(self, os.close, self.descriptor)


def _check_size(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        raise BrokenShardError(f"{path}: the shard is missing") from None
    if found != size:
        raise BrokenShardError(f"{path}: has {found} bytes, the index says {size}; cut or changed, fetch it again")
