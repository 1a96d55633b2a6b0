"""Training batches as functions of the step number: nothing to save, nothing to replay when a run resumes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from omnihuman_core.contracts import FeatureExtractor, PoseExtractor, TextFeatures
from omnihuman_core.dropout import draw_keep
from omnihuman_train.checkpointing import step_generator
from omnihuman_train.config import RunConfig, SegmentConfig
from omnihuman_train.data.cached import Shards, bucket_folders, shard_paths
from omnihuman_train.data.characters.prompts import as_prompt
from omnihuman_train.data.clips import from_bytes
from omnihuman_train.data.regions import box_mask, hand_boxes
from omnihuman_train.data.segments import draw_window, skeleton_maps
from omnihuman_train.stages import Stage, stage_at

# Streams of random numbers of one step, apart from each other.
DATA_STREAM, NOISE_STREAM, WORDS_STREAM = 0, 1, 3


class Buckets:
    """Samples of equal shape, bucket by bucket; a batch comes from one bucket, drawn by the number of its samples."""

    def __init__(self, folder: Path, keys: tuple[str, ...] | None = None) -> None:
        self.buckets = [Shards(shard_paths(path), keys) for path in bucket_folders(folder)]
        self._weights = torch.tensor([float(len(bucket)) for bucket in self.buckets])

    def draw(self, batch_size: int, generator: torch.Generator) -> tuple[Shards, Tensor]:
        """A bucket and ``(B,)`` indices into it."""
        bucket = self.buckets[int(torch.multinomial(self._weights, 1, generator=generator))]
        return bucket, torch.randint(len(bucket), (batch_size,), generator=generator)


def rank_rows(batch_size: int, rank: int, world: int) -> slice:
    """Rows of a batch that belong to data rank ``rank`` of ``world``: row ``i`` is of rank ``i // (B / world)``."""
    count = batch_size // world
    return slice(rank * count, (rank + 1) * count)


class Shared(ABC):
    """Batches of which a process takes its rows alone. What a step draws does not depend on the number of processes.

    Args:
        sizes: Samples per step of the whole batches.
    """

    rank, world = 0, 1

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = tuple(sizes)

    @abstractmethod
    def __call__(self, step: int) -> dict[str, Any]:
        """What this process computes in ``step``."""

    def part(self, rank: int, world: int) -> Self:
        """The same batches cut to part ``rank`` of ``world`` equal ones; the data in memory is shared.

        Raises:
            ValueError: a batch size that ``world`` does not divide.
        """
        if odd := [size for size in self._sizes if size % world]:
            raise ValueError(f"batch_size {odd[0]} must be a multiple of data processes x run.accumulate = {world}")
        cut = copy(self)
        cut.rank, cut.world = rank, world
        return cut


class VideoBatches(Shared):
    """Short windows of rendered clips for the VAE: ``video`` in [-1, 1] and its loss ``weight``.

    Args:
        folder: Rendered clips, one folder per size bucket.
        run: Seed and batch size.
        frames: Pixel frames of a window.
        mouth_weight: Loss weight of mouth pixels.
        hand_weight: Loss weight of hand pixels.
        image_ratio: Share of batches of single pictures; such a batch has as many of them as the others have frames.

    Raises:
        ValueError: there are clips shorter than a window.
    """

    def __init__(
        self,
        folder: Path,
        run: RunConfig,
        *,
        frames: int,
        mouth_weight: float,
        hand_weight: float = 1.0,
        image_ratio: float = 0.0,
    ) -> None:
        super().__init__([run.batch_size])
        self._data = Buckets(folder, ("video", "mouth_box", "hands"))
        shortest = min(bucket.tensors["video"].shape[2] for bucket in self._data.buckets)
        if frames > shortest:
            raise ValueError(f"{folder}: vae_frames is {frames}, but there are clips of {shortest} frames")
        self._run, self._frames = run, frames
        self._mouth_weight, self._hand_weight = mouth_weight, hand_weight
        self._image_ratio = image_ratio

    def __call__(self, step: int) -> dict[str, Tensor]:
        """Batch of ``step``: ``video`` (B, 3, T, H, W), ``weight`` (B, 1, T, H, W)."""
        generator = step_generator(self._run.seed, step, DATA_STREAM)
        frames, count = self._frames, self._run.batch_size
        # Drawn only where asked for: recipes without pictures keep their draws.
        if self._image_ratio and bool(torch.rand((), generator=generator) < self._image_ratio):
            frames, count = 1, count * frames
        bucket, indices = self._data.draw(count, generator)
        video, boxes, hands = (bucket.tensors[key] for key in ("video", "mouth_box", "hands"))
        starts = torch.randint(video.shape[2] - frames + 1, (len(indices),), generator=generator).tolist()
        rows = [(i, slice(s, s + frames)) for i, s in zip(indices.tolist(), starts, strict=True)]
        rows = rows[rank_rows(len(rows), self.rank, self.world)]
        pixels = from_bytes(torch.stack([video[i, :, window] for i, window in rows]))
        size = (int(pixels.shape[-2]), int(pixels.shape[-1]))
        mouth = torch.stack([box_mask(boxes[i, window], *size) for i, window in rows])[:, None].float()
        weight = 1 + (self._mouth_weight - 1) * mouth
        if self._hand_weight != 1:
            hand = torch.stack([box_mask(hand_boxes(hands[i, window]), *size) for i, window in rows])[:, None].float()
            weight = weight + (self._hand_weight - 1) * hand
        return {"video": pixels, "weight": weight}


class FlowBatches(Shared):
    """Segments of encoded clips for the backbone, with the keep draws of the stage that the step belongs to.

    Args:
        folder: Encoded clips, one folder per size bucket.
        run: Seed and batch size.
        segment: Frames of a sample.
        stages: Stages in order.
        text_extractor: Gives ids of the captions.
        pose_extractor: Draws skeleton maps.
        spatial_stride: Pixels behind a latent position, for the size of the maps.
        prompts: Share of samples whose caption is turned into a prompt; see :func:`as_prompt`.

    Raises:
        ValueError: the clips are too short for a segment.
    """

    def __init__(
        self,
        folder: Path,
        run: RunConfig,
        segment: SegmentConfig,
        stages: tuple[Stage, ...],
        *,
        text_extractor: FeatureExtractor[Sequence[str], TextFeatures],
        pose_extractor: PoseExtractor,
        spatial_stride: int,
        prompts: float = 0.0,
    ) -> None:
        super().__init__([stage.batch_size or run.batch_size for stage in stages])
        self._data = Buckets(folder)
        segment.check([bucket.tensors["latents"].shape[2] for bucket in self._data.buckets])
        self._run, self._segment, self._stages = run, segment, stages
        self._pose_extractor, self._stride = pose_extractor, spatial_stride
        self._text_extractor, self._prompts = text_extractor, prompts

    def __call__(self, step: int) -> dict[str, Any]:
        """Batch of ``step``; see :class:`omnihuman_train.objective.FlowObjective` for its keys."""
        generator = step_generator(self._run.seed, step, DATA_STREAM)
        stage = stage_at(self._stages, step)
        bucket, indices = self._data.draw(stage.batch_size or self._run.batch_size, generator)
        eligible = {name: bucket.tensors[f"has_{name}"][indices] for name in ("audio", "pose")}
        keep = draw_keep(len(indices), vars(stage.ratios), eligible, generator)
        noise = step_generator(self._run.seed, step, NOISE_STREAM)
        seeds = torch.randint(2**62, (len(indices),), generator=noise)
        words = np.random.default_rng(step_generator(self._run.seed, step, WORDS_STREAM).initial_seed())
        captions = [bucket.texts["caption"][index] for index in indices.tolist()]
        prompts = [as_prompt(text, words) if words.random() < self._prompts else text for text in captions]
        # Drawn for the rows of all processes; from here on there are those of this one alone.
        mine = rank_rows(len(indices), self.rank, self.world)
        indices, keep, seeds = indices[mine], {name: kept[mine] for name, kept in keep.items()}, seeds[mine]
        rows = {key: value[indices] for key, value in bucket.tensors.items()}
        text = self._text_extractor.extract(prompts[mine])
        latents = rows["latents"]
        size = (latents.shape[-2] * self._stride, latents.shape[-1] * self._stride)
        if stage.pictures:
            start, frames, motion = 0, 1, 0
        else:
            frames = self._segment.latent_frames
            start, motion = draw_window(self._segment, latents.shape[2], generator)
        return {
            "latents": latents,
            "start": start,
            "stop": start + frames,
            "motion_latents": motion,
            "reference": rows["reference"],
            "text_values": text.values,
            "text_mask": text.mask,
            "audio": rows["audio"],
            "pose_maps": skeleton_maps(self._pose_extractor, rows["keypoints"][keep["pose"]], size),
            "keep": keep,
            "has_audio": rows["has_audio"],
            "mouth_open": rows["mouth_open"],
            "mouth_region": rows["mouth_region"],
            "hand_region": rows["hand_region"],
            "seeds": seeds,
        }
