"""Batches of a data set by step, read ahead in threads: no state to save, the same for any number of processes.

Row ``i`` of the batch of a step goes to rank ``i // (B / world)``. A sample that cannot be read is counted, named, and
replaced by the next one of its bucket; a shard that cannot be read ends the run with its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from omnihuman_core.contracts import PoseExtractor
from omnihuman_core.dropout import draw_keep
from omnihuman_train.checkpointing import step_generator
from omnihuman_train.config import SegmentConfig
from omnihuman_train.data.batches import DATA_STREAM, rank_rows
from omnihuman_train.data.buffers import BufferPool
from omnihuman_train.data.manifest import Bucket
from omnihuman_train.data.members import MEMBERS, TEXT, Layouts, check_text
from omnihuman_train.data.plan import Batch, BatchConfig, BatchPlan, noise_seeds
from omnihuman_train.data.reader import ReadAhead, SampleReader, by_bucket, check_world
from omnihuman_train.data.rows import Rows
from omnihuman_train.data.segments import draw_window, skeleton_maps
from omnihuman_train.data.shard_set import ShardSet
from omnihuman_train.data.shards import STATES
from omnihuman_train.stages import Stage, stage_at


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
                f"stream.threads must be at least 1 and stream.ahead not negative, got {self.threads}, {self.ahead}"
            )


class FlowStream:
    """Batches of encoded clips for :class:`omnihuman_train.objective.FlowObjective`, for one rank.

    Keys as in :class:`omnihuman_train.data.batches.FlowBatches`, and ``key``, the names of the samples; where every row
    keeps its text, ``text_length`` and ``text_padded``: tokens of the longest one, and whether any is shorter. Which
    frames a step takes is drawn for the step; what is kept and ``seeds``, for each row of the whole batch: none of it
    depends on the number of processes.

    Args:
        data: Folder of an encoded data set.
        config: How it is read.
        segment: Frames of a training sample; the token budget counts those.
        stages: Stages in order.
        seed: Everything that is drawn is a function of it and of the step.
        pose_extractor: Draws skeleton maps.
        trim_texts: Name the end of the texts, so that what follows is left out; another end is another shape.
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
        pose_extractor: PoseExtractor,
        trim_texts: bool = True,
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
        self._trim_texts = trim_texts
        buckets = by_bucket(self.data)
        self._layouts = Layouts(self.data, buckets)
        self.spec = self._layouts.spec
        segment.check([self.spec.latent_frames(bucket.frames) for bucket in buckets])
        self.plan = BatchPlan(buckets, self.tokens, config.batch, seed)
        check_world(self.plan, rank, world)
        self.reader = SampleReader(self.data, self.plan, config.threads)
        self._pool = BufferPool()
        self._batches = ReadAhead(self.read, config.ahead)

    def part(self, rank: int, world: int) -> Self:
        """The same batches cut to part ``rank`` of ``world`` equal ones; what is known of the data is shared.

        Raises:
            ValueError: a batch size that ``world`` does not divide.
        """
        check_world(self.plan, rank, world)
        cut = copy(self)
        cut._rank, cut._world = rank, world
        cut._batches = ReadAhead(cut.read, self._config.ahead)
        return cut

    def tokens(self, bucket: Bucket) -> int:
        """Latent positions of a training sample of a bucket."""
        height, width = self.spec.latent_size(bucket.height, bucket.width)
        return self._segment.latent_frames * height * width

    def shapes(self) -> int:
        """Shapes that a rank's samples come in: buckets, and segments that start a clip or continue one."""
        kinds = 1 + (self._segment.motion_latents > 0 and 0 < self._segment.continuing_ratio < 1)
        return kinds * len(self.plan.sizes)

    def features(self) -> dict[str, Tensor]:
        """Audio and text features in the shapes and dtypes of one sample, all zeros: what encoders have to take."""
        bucket = next(iter(self.plan.sizes))
        text = self._layouts.of_texts(self._layouts.of_bucket(bucket, TEXT))
        places = (*self._layouts.of_bucket(bucket, "audio.safetensors").places, *text.places)
        return {place.name: torch.zeros(1, *place.shape, dtype=place.dtype) for place in places}

    def __call__(self, step: int) -> dict[str, Any]:
        """Batch of ``step``; the following ones are read meanwhile."""
        return self._batches(step)

    def read(self, step: int) -> dict[str, Any]:
        """Batch of ``step``, read now."""
        batch = self.plan.batch(step)
        mine = rank_rows(len(batch.positions), self._rank, self._world)
        positions = batch.positions[mine].tolist()
        layouts = {member: self._layouts.of_bucket(batch.bucket, member) for member in MEMBERS}
        text = self._layouts.of_texts(layouts[TEXT])
        rows = Rows({**layouts, TEXT: text}, len(positions), self._pool)
        lengths = [0] * len(positions)

        def read(sample: int, row: int) -> None:
            for member, layout in layouts.items():
                if member == TEXT:
                    layout = self._layouts.of_size(sample, member)
                    check_text(layout, text, self.data.records[sample].key)
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
        start, motion = draw_window(self._segment, latents.shape[2], generator)
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
            # What stands for a dropped text may be longer than those that are kept.
            **(end_of_texts(rows["mask"]) if self._trim_texts and keep["text"].all() else {}),
            "audio": rows["states"],
            "pose_maps": skeleton_maps(self._pose_extractor, rows["keypoints"][keep["pose"]], batch.bucket[1:]),
            "keep": keep,
            "has_audio": fit["audio"],
            "mouth_open": rows["mouth_open"],
            "mouth_region": rows["mouth_region"],
            "hand_region": rows["hand_region"],
            "seeds": torch.from_numpy(noise_seeds(self._seed, step, numbers)),
            "key": [record.key for record in records],
        }


def end_of_texts(mask: Tensor) -> dict[str, Any]:
    """Tokens ``text_length`` after which no text of ``mask`` (B, S) counts any, and whether it pads one before that."""
    counting = mask.any(0).nonzero()
    length = int(counting[-1]) + 1 if len(counting) else 1
    return {"text_length": length, "text_padded": not bool(mask[:, :length].all())}
