"""Rows of batches read in threads and ahead of time, with a replacement for what is broken."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from omnihuman_train.data.manifest import Bucket
from omnihuman_train.data.plan import BatchPlan
from omnihuman_train.data.shard_set import ShardSet
from omnihuman_train.data.shards import BrokenSampleError

_LOG = logging.getLogger(__name__)


class SampleReader:
    """Rows of batches in threads, with a replacement for what is broken.

    Args:
        data: The data set.
        plan: Its batches.
        threads: Rows that are read at the same time.

    Attributes:
        broken: Samples that could not be read, with the reason.
    """

    def __init__(self, data: ShardSet, plan: BatchPlan, threads: int) -> None:
        self._data, self._plan = data, plan
        self._pool = ThreadPoolExecutor(threads, "sample") if threads > 1 else None
        self._lock = threading.Lock()
        self.broken: dict[str, str] = {}

    def read(self, bucket: Bucket, positions: Sequence[int], read: Callable[[int, int], None]) -> list[int]:
        """Call ``read(sample, row)`` for every row.

        Returns:
            The samples that were read, row by row.

        Raises:
            ValueError: no sample of the bucket can be read.
            BrokenShardError: a shard is cut or changed.
        """

        def one(row: int) -> int:
            position = positions[row]
            for _ in range(self._plan.counts[bucket]):
                sample = self._plan.sample(bucket, position)
                key = self._data.records[sample].key
                if key not in self.broken:
                    try:
                        read(sample, row)
                        return sample
                    except BrokenSampleError as error:
                        self._note(sample, str(error))
                position = self._plan.following(bucket, position)
            raise ValueError(f"{self._data.folder}: no sample of the bucket {bucket} can be read; run data check")

        rows = range(len(positions))
        # In the order of the bytes on disk where rows are read one after the other.
        order = sorted(rows, key=lambda row: self._plan.sample(bucket, positions[row]))
        done = dict(zip(order, (self._pool.map if self._pool else map)(one, order), strict=True))
        return [done[row] for row in rows]

    def _note(self, sample: int, reason: str) -> None:
        record, shard = self._data.records[sample], self._data.index.shards[self._data.shard_of[sample]]
        with self._lock:
            if record.key in self.broken:
                return
            self.broken[record.key] = reason
            count = len(self.broken)
        _LOG.warning(
            "broken sample %d: %s (%s) in %s, skipped: %s", count, record.key, record.source, shard.name, reason
        )


class ReadAhead:
    """Runs a function of the step some steps ahead of its caller; the results are the same.

    Args:
        batches: Gives the batch of a step.
        ahead: Steps to work ahead.
    """

    def __init__(self, batches: Callable[[int], dict[str, Any]], ahead: int) -> None:
        self._batches, self._ahead = batches, ahead
        self._pool = ThreadPoolExecutor(max(ahead, 1), "ahead")
        self._coming: dict[int, Future[dict[str, Any]]] = {}
        self._lock = threading.Lock()

    def __call__(self, step: int) -> dict[str, Any]:
        """Batch of ``step``."""
        with self._lock:
            wanted = range(step, step + self._ahead + 1)
            for other in [other for other in self._coming if other not in wanted]:
                self._coming.pop(other).cancel()
            for number in wanted:
                if number not in self._coming:
                    self._coming[number] = self._pool.submit(self._batches, number)
            future = self._coming.pop(step)
        return future.result()


def by_bucket(data: ShardSet) -> dict[Bucket, list[list[int]]]:
    """Numbers of the samples of each bucket, by shard."""
    shards: dict[Bucket, dict[int, list[int]]] = {}
    for number, (record, shard) in enumerate(zip(data.records, data.shard_of, strict=True)):
        shards.setdefault(record.bucket, {}).setdefault(shard, []).append(number)
    return {bucket: list(parts.values()) for bucket, parts in shards.items()}


def check_world(plan: BatchPlan, rank: int, world: int) -> None:
    """Check that every batch can be shared out.

    Raises:
        ValueError: a batch size that the number of processes does not divide.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank must be in [0, world), got rank {rank} of {world}")
    for bucket, size in plan.sizes.items():
        if size % world:
            raise ValueError(
                f"{world} processes cannot share batches of {size} samples (bucket {bucket}); set run.batch_size, or "
                f"stream.batch.multiple beside a token budget, to a multiple of {world} (data processes x "
                f"run.accumulate)"
            )
