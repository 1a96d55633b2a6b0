"""Batches of packed clips as pixels, for the VAE: decoded in threads, otherwise as the stream of encoded clips."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnihuman_train.checkpointing import step_generator
from omnihuman_train.data.batches import DATA_STREAM, rank_rows
from omnihuman_train.data.buffers import BufferPool
from omnihuman_train.data.manifest import Bucket
from omnihuman_train.data.media import decode_video
from omnihuman_train.data.members import load_tensors
from omnihuman_train.data.plan import BatchPlan, ordering
from omnihuman_train.data.reader import ReadAhead, SampleReader, by_bucket, check_world
from omnihuman_train.data.regions import box_mask, boxes
from omnihuman_train.data.shard_set import ShardSet
from omnihuman_train.data.shards import CLIPS, BrokenSampleError
from omnihuman_train.data.stream import StreamConfig

# Draws of whole clips, apart from those of batches.
_CLIPS_STREAM = 5


class VideoStream:
    """Windows of packed clips for one rank: ``video`` (B, 3, T, H, W) **uint8**, ``weight`` (B, 1, T, H, W), ``key``.

    The video stays in bytes: :func:`omnihuman_train.data.clips.from_bytes` makes it float in [-1, 1] where it is used,
    a quarter of the bytes to a GPU.

    Args:
        data: Folder of a packed data set.
        config: How it is read; the token budget counts pixels, over all frames of a window.
        frames: Pixel frames ``T`` of a window; None takes whole clips.
        seed: Everything that is drawn is a function of it and of the step.
        mouth_weight: Loss weight of pixels that show a mouth.
        hand_weight: Loss weight of pixels that show a hand.
        image_ratio: Share of batches of single frames, from anywhere in a clip; with a fixed batch size such a batch
            has as many of them as the others have frames, each of a sample of its own.
        rank: Number of this data-parallel process.
        world: How many there are.

    Raises:
        ValueError: no packed data set, clips shorter than a window, pictures beside whole clips, or as
            :class:`FlowStream`.
        BrokenShardError: a shard is missing or cut.
    """

    def __init__(
        self,
        data: Path,
        config: StreamConfig,
        *,
        frames: int | None,
        seed: int,
        mouth_weight: float = 1.0,
        hand_weight: float = 1.0,
        image_ratio: float = 0.0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if image_ratio and frames is None:
            raise ValueError(f"image_ratio is {image_ratio}, which needs a length of windows; set frames")
        self.data = open_clips(data, config)
        buckets = by_bucket(self.data)
        shortest = min(bucket.frames for bucket in buckets)
        if frames is not None and not 1 <= frames <= shortest:
            raise ValueError(f"{data}: a window of {frames} frames, but there are clips of {shortest}")
        self._config, self._frames, self._seed = config, frames, seed
        self._weights, self._image_ratio = (mouth_weight, hand_weight), image_ratio
        self._rank, self._world = rank, world
        self.plan = BatchPlan(buckets, self.tokens, config.batch, seed)
        # Both plans go through the samples of a bucket in the same order.
        self._pictures = self.plan
        if image_ratio:
            count = config.batch.batch_size and config.batch.batch_size * (frames or 1)
            batch = replace(config.batch, batch_size=count)
            self._pictures = BatchPlan(buckets, lambda bucket: bucket.height * bucket.width, batch, seed)
        for plan in (self.plan, self._pictures):
            check_world(plan, rank, world)
        self.reader = SampleReader(self.data, self.plan, config.threads)
        self._pool = BufferPool()
        self._batches = ReadAhead(self.read, config.ahead)

    def tokens(self, bucket: Bucket) -> int:
        """Pixels of a window of a bucket."""
        return (self._frames or bucket.frames) * bucket.height * bucket.width

    def __call__(self, step: int) -> dict[str, Any]:
        """Batch of ``step``; the following ones are decoded meanwhile."""
        return self._batches(step)

    def read(self, step: int) -> dict[str, Any]:
        """Batch of ``step``, decoded now."""
        generator = step_generator(self._seed, step, DATA_STREAM)
        # Drawn only where asked for: streams without pictures keep their draws.
        still = bool(self._image_ratio) and bool(torch.rand((), generator=generator) < self._image_ratio)
        batch = (self._pictures if still else self.plan).batch(step)
        bucket, frames = batch.bucket, 1 if still else self._frames or batch.bucket.frames
        mine = rank_rows(len(batch.positions), self._rank, self._world)
        # Drawn for the rows of all ranks.
        starts = torch.randint(bucket.frames - frames + 1, (len(batch.positions),), generator=generator)[mine].tolist()
        positions = batch.positions[mine].tolist()
        shape = (len(positions), frames, bucket.height, bucket.width)
        pixels = self._pool.empty((*shape, 3), torch.uint8)
        weighted = self._weights != (1.0, 1.0)
        weight = self._pool.empty(shape, torch.float32) if weighted else torch.ones(()).expand(shape)

        def read(sample: int, row: int) -> None:
            data = self.data.read(sample, "mp4", verify=self._config.verify)
            decode_video(data, pixels[row], first=starts[row])
            if weighted:
                weight[row] = self._weight(sample)[starts[row] : starts[row] + frames]

        samples = self.reader.read(bucket, positions, read)
        video = pixels.permute(0, 4, 1, 2, 3)  # (B, 3, T, H, W)
        return {"video": video, "weight": weight[:, None], "key": [self.data.records[sample].key for sample in samples]}

    def _weight(self, sample: int) -> Tensor:
        """Weight of the pixels of a whole clip, ``(T, H, W)``."""
        record = self.data.records[sample]
        known = {}
        if "pose.safetensors" in self.data.members(sample):
            known = load_tensors(self.data.read(sample, "pose.safetensors"), f"{record.key}.pose.safetensors")
        mouth, hand = (box_mask(found, record.height, record.width).float() for found in boxes(known, record.frames))
        return 1 + (self._weights[0] - 1) * mouth + (self._weights[1] - 1) * hand


def open_clips(data: Path, config: StreamConfig) -> ShardSet:
    """The packed data set in ``data``, with the samples that ``config`` takes.

    Raises:
        ValueError: it is none, or holds no sample of a licence.
    """
    found = ShardSet(data, licences=config.licences)
    if found.index.kind != CLIPS:
        raise ValueError(f"{data}: holds {found.index.kind}, not clips; give the packed data set")
    return found


def drawn_clips(data: ShardSet, count: int, seed: int) -> Iterator[Tensor]:
    """Up to ``count`` whole clips, uint8 ``(3, T, H, W)``, drawn from all of a packed data set.

    A clip that cannot be read is left out for the next one.
    """
    for sample in ordering(len(data), seed, _CLIPS_STREAM).tolist():
        if not count:
            return
        pixels = torch.empty(*data.records[sample].bucket, 3, dtype=torch.uint8)
        try:
            decode_video(data.read(sample, "mp4"), pixels)
        except BrokenSampleError:
            continue
        count -= 1
        yield pixels.permute(3, 0, 1, 2)  # (3, T, H, W)
