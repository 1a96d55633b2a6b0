"""Batches of a data set by step, read ahead in threads: no state to save, the same for any number of processes.

Row ``i`` of the batch of a step goes to rank ``i // (B / world)``. A sample that cannot be read is counted, named, and
replaced by the next one of its bucket; a shard that cannot be read ends the run with its name.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnihuman_core.contracts import LatentSpec
from omnihuman_core.dropout import draw_keep
from omnihuman_train.checkpointing import step_generator
from omnihuman_train.config import SegmentConfig
from omnihuman_train.data.batches import DATA_STREAM
from omnihuman_train.data.buffers import BufferPool
from omnihuman_train.data.manifest import Bucket
from omnihuman_train.data.plan import Batch, BatchConfig, BatchPlan, noise_seeds
from omnihuman_train.data.rows import Layout, Rows
from omnihuman_train.data.shard_set import ShardSet
from omnihuman_train.data.shards import STATES, BrokenSampleError
from omnihuman_train.stages import Stage, stage_at

_LOG = logging.getLogger(__name__)
_TEXT = "text.safetensors"
_MEMBERS = ("latents.safetensors", "audio.safetensors", "pose.safetensors", _TEXT)


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """How a data set is read.

    Attributes:
        batch: Size of batches, and how they are drawn.
        licences: Licences to take; None takes all.
        threads: Samples that are read at the same time.
        ahead: Batches that are read ahead.
        verify: Compare every member with its sha256. Costs reading speed; ``omnihuman-train data check`` does it once.
    """

    batch: BatchConfig
    licences: tuple[str, ...] | None = None
    threads: int = 4
    ahead: int = 2
    verify: bool = False

    def __post_init__(self) -> None:
        if self.threads < 1 or self.ahead < 0:
            raise ValueError(
                f"data.threads must be at least 1 and data.ahead not negative, got {self.threads}, {self.ahead}"
            )


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


class FlowStream:
    """Batches of encoded clips for :class:`omnihuman_train.objective.FlowObjective`, for one rank.

    Keys as in :class:`omnihuman_train.data.batches.FlowBatches`, with ``seeds`` (B,) int64, one for the noise of each
    row, in the place of ``generator``, and ``key``, the names of the samples. Which frames a step takes is drawn for
    the step; what is kept, for each row of the whole batch: neither depends on the number of processes.

    Args:
        data: Folder of an encoded data set.
        config: How it is read.
        segment: Frames of a training sample; the token budget counts those.
        stages: Stages in order.
        seed: Everything that is drawn is a function of it and of the step.
        pose_extractor: Draws skeleton maps.
        mouth_truth: Refuse samples of which the true opening of the mouth is not known, which a mouth probe needs.
        rank: Number of this data-parallel process.
        world: How many there are.

    Raises:
        ValueError: no encoded data set, clips too short for a segment, a budget too small for a bucket, or a number of
            processes that does not divide a batch.
        BrokenShardError: a shard is missing or cut.
    """

    def __init__(
        self,
        data: Path,
        config: StreamConfig,
        segment: SegmentConfig,
        stages: tuple[Stage, ...],
        *,
        seed: int,
        pose_extractor: Any,
        mouth_truth: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.data = ShardSet(data, licences=config.licences)
        if self.data.index.kind != STATES:
            raise ValueError(f"{data}: holds {self.data.index.kind}; run `omnihuman-train data cache` first")
        if mouth_truth and (unknown := [record for record in self.data.records if not record.has_mouth]):
            raise ValueError(
                f"{data}: the opening of the mouth is not known of {len(unknown)} samples, the first is "
                f"{unknown[0].key}; set flow.mouth_probe_weight to 0"
            )
        self._config, self._segment, self._stages, self._seed = config, segment, stages, seed
        self._rank, self._world, self._pose_extractor = rank, world, pose_extractor
        self.spec = LatentSpec(**self.data.index.recipe["latent_spec"])
        self._text_length = int(self.data.index.recipe["text_length"])
        buckets = by_bucket(self.data)
        segment.check([self.spec.latent_frames(bucket.frames) for bucket in buckets])
        self.plan = BatchPlan(buckets, self.tokens, config.batch, seed)
        check_world(self.plan, rank, world)
        self.reader = SampleReader(self.data, self.plan, config.threads)
        self._layouts: dict[tuple[Bucket, str], Layout] = {}
        self._sizes: dict[int, Layout] = {}
        self._pool = BufferPool()
        self._batches = ReadAhead(self.read, config.ahead)

    def tokens(self, bucket: Bucket) -> int:
        """Latent positions of a training sample of a bucket."""
        height, width = self.spec.latent_size(bucket.height, bucket.width)
        return self._segment.latent_frames * height * width

    def __call__(self, step: int) -> dict[str, Any]:
        """Batch of ``step``; the following ones are read meanwhile."""
        return self._batches(step)

    def read(self, step: int) -> dict[str, Any]:
        """Batch of ``step``, read now."""
        batch = self.plan.batch(step)
        mine = rank_rows(batch, self._rank, self._world)
        positions = batch.positions[mine].tolist()
        layouts = {member: self._layout(batch.bucket, member) for member in _MEMBERS}
        text = self._text_layout(layouts[_TEXT])
        rows = Rows({**layouts, _TEXT: text}, len(positions), self._pool)
        lengths = [0] * len(positions)

        def read(sample: int, row: int) -> None:
            for member, layout in layouts.items():
                if member == _TEXT:
                    layout = self._layout_of_size(sample, member)
                    _check_text(layout, text, self.data.records[sample].key)
                    lengths[row] = layout.shapes["mask"][0]
                rows.read(self.data, sample, member, layout, row, verify=self._config.verify)

        samples = self.reader.read(batch.bucket, positions, read)
        for row, length in enumerate(lengths):
            rows.tensors["values"][row, length:] = 0
            rows.tensors["mask"][row, length:] = False
        return self._drawn(step, batch, mine, samples, rows.tensors)

    def _drawn(
        self, step: int, batch: Batch, mine: slice, samples: Sequence[int], rows: dict[str, Tensor]
    ) -> dict[str, Any]:
        generator = step_generator(self._seed, step, DATA_STREAM)
        # Drawn for the rows of all ranks; what a sample is fit for is known once it was read.
        drawn = draw_keep(len(batch.positions), vars(stage_at(self._stages, step).ratios), {}, generator)
        records = [self.data.records[sample] for sample in samples]
        fit = {name: torch.tensor([getattr(r, f"has_{name}") for r in records]) for name in ("text", "audio", "pose")}
        keep = {name: draws[mine] & fit[name] if name in fit else draws[mine] for name, draws in drawn.items()}
        latents = rows["latents"]
        start, motion = self._window(latents.shape[2], generator)
        numbers = torch.arange(mine.start, mine.stop).numpy()
        return {
            "latents": latents,
            "start": start,
            "stop": start + self._segment.latent_frames,
            "motion_latents": motion,
            "reference": rows["reference"],
            "text_values": rows["values"],
            "text_mask": rows["mask"],
            **({"text_pooled": rows["pooled"]} if "pooled" in rows else {}),
            "audio": rows["states"],
            "pose_maps": self._maps(rows["keypoints"][keep["pose"]].float(), batch.bucket),
            "keep": keep,
            "has_audio": fit["audio"],
            "mouth_open": rows["mouth_open"],
            "mouth_region": rows["mouth_region"],
            "hand_region": rows["hand_region"],
            "seeds": torch.from_numpy(noise_seeds(self._seed, step, numbers)),
            "key": [record.key for record in records],
        }

    def _window(self, latent_frames: int, generator: torch.Generator) -> tuple[int, int]:
        """First latent frame of the segment and its motion latents."""
        continuing = bool(torch.rand((), generator=generator) < self._segment.continuing_ratio)
        latest = latent_frames - self._segment.latent_frames
        # A continuing segment never holds latent frame 0, which covers one pixel frame and the others several.
        start = int(torch.randint(1, latest + 1, (), generator=generator)) if continuing and latest else 0
        return start, self._segment.motion_latents if continuing else 0

    def _maps(self, keypoints: Tensor, bucket: Bucket) -> Tensor | None:
        if not len(keypoints):
            return None
        size = (bucket.height, bucket.width)
        return torch.stack([self._pose_extractor.extract(points, size=size) for points in keypoints])

    def _layout(self, bucket: Bucket, member: str) -> Layout:
        """Layout that the samples of a bucket share, read off the first one that is whole."""
        if (bucket, member) not in self._layouts:
            for sample in by_bucket(self.data)[bucket]:
                for number in sample:
                    name = f"{self.data.records[number].key}.{member}"
                    try:
                        layout = Layout.parse(self.data.read(number, member), name)
                    except BrokenSampleError:
                        continue
                    if self._fits(layout, bucket, member):
                        self._layouts[bucket, member] = layout
                        return layout
            raise ValueError(f"{self.data.folder}: no sample of the bucket {bucket} has a readable {member}")
        return self._layouts[bucket, member]

    def _text_layout(self, one: Layout) -> Layout:
        """Layout of a text of the length that the extractor gives: that of a row."""
        places = [
            place if place.name == "pooled" else replace(place, shape=(self._text_length, *place.shape[1:]))
            for place in one.places
        ]
        return Layout(header=b"", places=tuple(places))

    def _layout_of_size(self, sample: int, member: str) -> Layout:
        """Layout of a member whose length differs from sample to sample; equal sizes are equal layouts."""
        span = self.data.members(sample).get(member)
        size = span.size if span else 0
        if size not in self._sizes:
            self._sizes[size] = Layout.parse(
                self.data.read(sample, member), f"{self.data.records[sample].key}.{member}"
            )
        return self._sizes[size]

    def _fits(self, layout: Layout, bucket: Bucket, member: str) -> bool:
        """Whether a member holds what it should, in the shapes that the manifest says."""
        frames, positions = bucket.frames, self.spec.latent_shape(*bucket)[1:]
        shapes = {place.name: place.shape for place in layout.places}
        wanted: dict[str, tuple[int, ...]] = {
            "latents.safetensors": {
                "latents": (self.spec.channels, *positions),
                "reference": (self.spec.channels, 1, *positions[1:]),
                "mouth_region": positions,
                "hand_region": positions,
            },
            # Layers and width are the extractor's.
            "audio.safetensors": {"states": (frames, *shapes.get("states", ())[1:])},
            "pose.safetensors": {"keypoints": (frames, 133, 3), "mouth_open": (frames,)},
            _TEXT: {
                name: shapes.get(name, ())
                for name in ("values", "mask", "pooled")
                if name in shapes or name != "pooled"
            },
        }[member]
        return shapes == wanted


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
                f"{world} processes cannot share batches of {size} samples (bucket {bucket}); "
                f"set data.multiple to a multiple of {world}"
            )


def rank_rows(batch: Batch, rank: int, world: int) -> slice:
    """Rows of the batch that belong to a rank."""
    count = len(batch.positions) // world
    return slice(rank * count, (rank + 1) * count)


def _check_text(layout: Layout, whole: Layout, key: str) -> None:
    """Check that a text fits into the row of its batch.

    Raises:
        BrokenSampleError: it is longer than the extractor's texts, or of another kind.
    """
    for name, shape in whole.shapes.items():
        found = layout.shapes.get(name)
        same = (
            found == shape
            if name == "pooled"
            else found is not None and found[1:] == shape[1:] and found[0] <= shape[0]
        )
        if not same:
            raise BrokenSampleError(f"{key}.{_TEXT}: {name} is {found}, the texts of the set are {shape}")
    if len({layout.shapes["values"][0], layout.shapes["mask"][0]}) != 1 or layout.dtypes != whole.dtypes:
        raise BrokenSampleError(f"{key}.{_TEXT}: values and mask do not belong together")
