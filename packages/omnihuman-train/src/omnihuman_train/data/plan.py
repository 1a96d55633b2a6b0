"""Which samples make up the batch of a step: a function of seed and step, for any number of processes.

Every bucket is an endless sequence of its samples, one permutation after the other, cut into batches without a
remainder. Epoch ``e`` holds the batches that become full in it, those of all buckets in random order. A step's batch is
found by arithmetic alone, so there is no state of a stream to save.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from omnihuman_train.data.manifest import Bucket

# Streams of random numbers, apart from each other.
SCHEDULE, SHARDS, SAMPLES, NOISE = 1, 2, 3, 4
_MASK = (1 << 64) - 1


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Size of batches, and how they are drawn. Give ``token_budget`` or ``batch_size``.

    A stage that gives neither takes ``run.batch_size``.

    Attributes:
        token_budget: Most latent positions in the batch of a step, over all processes.
        batch_size: Samples in the batch of a step, over all processes.
        multiple: Batch sizes are multiples of this; numbers of data-parallel processes that divide it see the same
            batches.
        window: Shards that are shuffled into each other; the more, the better mixed, and the farther apart are reads.
    """

    token_budget: int | None = None
    batch_size: int | None = None
    multiple: int = 1
    window: int = 8

    def __post_init__(self) -> None:
        if self.token_budget is not None and self.batch_size is not None:
            raise ValueError("stream.batch.token_budget and stream.batch.batch_size are both set; give one of them")
        for name in ("token_budget", "batch_size", "multiple", "window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"stream.batch.{name} must be at least 1, got {value}")
        if self.batch_size is not None and self.batch_size % self.multiple:
            raise ValueError(
                f"a batch of {self.batch_size} samples is no multiple of stream.batch.multiple, {self.multiple}; "
                f"it is for batches by stream.batch.token_budget, leave it 1"
            )

    def size(self, bucket: Bucket, tokens: int) -> int:
        """Samples of a batch whose samples have ``tokens`` latent positions each.

        Raises:
            ValueError: the smallest batch is over the budget, or there is no size at all.
        """
        if self.batch_size is not None:
            return self.batch_size
        if self.token_budget is None:
            raise ValueError("batches have no size; set stream.batch.token_budget or stream.batch.batch_size")
        count = self.token_budget // (tokens * self.multiple) * self.multiple
        if not count:
            raise ValueError(
                f"stream.batch.token_budget is {self.token_budget}, but {self.multiple} samples of {bucket} have "
                f"{self.multiple * tokens} latent positions; raise it, or take shorter or smaller samples"
            )
        return count


class Batch(NamedTuple):
    """The batch of a step.

    Attributes:
        bucket: Shape of its samples.
        positions: ``(B,)`` place of each row in the bucket's endless sequence.
    """

    bucket: Bucket
    positions: NDArray[np.int64]


class BatchPlan:
    """Batches of a data set by step.

    Args:
        shards: Samples (numbers) of each bucket, by shard.
        tokens: Latent positions of a sample of a bucket.
        config: Size of batches.
        seed: Everything that is drawn is a function of it.

    Raises:
        ValueError: there are no samples, or the budget is too small for a bucket.
    """

    def __init__(
        self,
        shards: Mapping[Bucket, Sequence[Sequence[int]]],
        tokens: Callable[[Bucket], int],
        config: BatchConfig,
        seed: int,
    ) -> None:
        self._shards = {bucket: [list(part) for part in shards[bucket] if part] for bucket in sorted(shards)}
        self.counts = {bucket: sum(map(len, parts)) for bucket, parts in self._shards.items()}
        if not self.counts or not min(self.counts.values()):
            raise ValueError("a batch plan needs at least one sample in every bucket")
        self.sizes = {bucket: config.size(bucket, tokens(bucket)) for bucket in self.counts}
        self._window, self._seed = config.window, seed
        # A step ahead and a step behind may lie in another epoch.
        self._order = lru_cache(maxsize=2 * len(self.counts) + 2)(self._permuted)
        self._schedule = lru_cache(maxsize=4)(self._scheduled)

    def batch(self, step: int) -> Batch:
        """The batch of ``step``, counted from 0."""
        epoch = self.epoch(step)
        bucket, number = self._schedule(epoch)[step - self._steps_before(epoch)]
        start = number * self.sizes[bucket]
        return Batch(bucket, np.arange(start, start + self.sizes[bucket]))

    def sample(self, bucket: Bucket, position: int) -> int:
        """Number of the sample at a place in the endless sequence of a bucket."""
        epoch, place = divmod(position, self.counts[bucket])
        return int(self._order(bucket, epoch)[place])

    def following(self, bucket: Bucket, position: int) -> int:
        """The place after ``position``, in the same pass over the bucket: what takes the place of a broken sample."""
        epoch, place = divmod(position, self.counts[bucket])
        return epoch * self.counts[bucket] + (place + 1) % self.counts[bucket]

    def epoch(self, step: int) -> int:
        """Epoch that ``step`` belongs to."""
        per_epoch = sum(count / self.sizes[bucket] for bucket, count in self.counts.items())
        epoch = int(step / per_epoch)
        while self._steps_before(epoch) > step:
            epoch -= 1
        while self._steps_before(epoch + 1) <= step:
            epoch += 1
        return epoch

    def _steps_before(self, epoch: int) -> int:
        return sum(epoch * count // self.sizes[bucket] for bucket, count in self.counts.items())

    def _scheduled(self, epoch: int) -> list[tuple[Bucket, int]]:
        """Bucket and number of each batch that becomes full in an epoch, in the order of the steps."""
        slots: list[Bucket] = []
        following = {}
        for bucket, count in self.counts.items():
            following[bucket] = epoch * count // self.sizes[bucket]
            slots += [bucket] * ((epoch + 1) * count // self.sizes[bucket] - following[bucket])
        schedule = []
        for slot in ordering(len(slots), self._seed, SCHEDULE, epoch):
            bucket = slots[slot]
            schedule.append((bucket, following[bucket]))
            following[bucket] += 1
        return schedule

    def _permuted(self, bucket: Bucket, epoch: int) -> NDArray[np.int64]:
        """Samples of a bucket in the order of an epoch: shards shuffled, then samples within windows of shards."""
        parts = self._shards[bucket]
        shuffled = [parts[i] for i in ordering(len(parts), self._seed, SHARDS, epoch, *bucket)]
        pieces = []
        for start in range(0, len(shuffled), self._window):
            window = np.array([sample for part in shuffled[start : start + self._window] for sample in part])
            pieces.append(window[ordering(len(window), self._seed, SAMPLES, epoch, start, *bucket)])
        return np.concatenate(pieces)


def ordering(count: int, *seed: int) -> NDArray[np.int64]:
    """A permutation of ``0 .. count - 1``, equal on every machine and in every version of every library."""
    return np.argsort(hashes(np.arange(count, dtype=np.uint64), *seed), kind="stable")


def noise_seeds(seed: int, step: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Seeds ``(B,)`` of the noise of some rows of the batch of a step, in [0, 2^63)."""
    return (hashes(rows.astype(np.uint64), seed, NOISE, step) >> np.uint64(1)).astype(np.int64)


def hashes(values: NDArray[np.uint64], *seed: int) -> NDArray[np.uint64]:
    """64 well mixed bits of each value and the seed (splitmix64: Steele, Lea, Flood 2014)."""
    state = 0
    for part in seed:
        state = int(_mixed(np.array([state ^ (part & _MASK)], dtype=np.uint64))[0])
    return _mixed(values ^ np.array([state], dtype=np.uint64))


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
