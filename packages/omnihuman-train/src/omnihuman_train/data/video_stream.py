"""Batches of packed clips as pixels, for the VAE: decoded in threads, otherwise as the stream of encoded clips."""

from __future__ import annotations

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
from omnihuman_train.data.plan import BatchPlan
from omnihuman_train.data.reader import ReadAhead, SampleReader, by_bucket, check_world
from omnihuman_train.data.regions import box_mask, boxes
from omnihuman_train.data.shard_set import ShardSet
from omnihuman_train.data.shards import CLIPS
from omnihuman_train.data.stream import StreamConfig


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
        rank: Number of this data-parallel process.
        world: How many there are.

    Raises:
        ValueError: no packed data set, clips shorter than a window, or as :class:`FlowStream`.
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
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.data = ShardSet(data, licences=config.licences)
        if self.data.index.kind != CLIPS:
            raise ValueError(f"{data}: holds {self.data.index.kind}, not clips; give the packed data set")
        buckets = by_bucket(self.data)
        shortest = min(bucket.frames for bucket in buckets)
        if frames is not None and not 1 <= frames <= shortest:
            raise ValueError(f"{data}: a window of {frames} frames, but there are clips of {shortest}")
        self._config, self._frames, self._seed = config, frames, seed
        self._weights = (mouth_weight, hand_weight)
        self._rank, self._world = rank, world
        self.plan = BatchPlan(buckets, self.tokens, config.batch, seed)
        check_world(self.plan, rank, world)
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
        batch = self.plan.batch(step)
        bucket, frames = batch.bucket, self._frames or batch.bucket.frames
        mine = rank_rows(len(batch.positions), self._rank, self._world)
        generator = step_generator(self._seed, step, DATA_STREAM)
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
