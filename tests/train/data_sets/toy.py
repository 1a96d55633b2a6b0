"""Encoded data sets of made-up numbers, and small video files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from omnihuman_core.testing.fake_encoders import FakePoseExtractor, FakePoseExtractorConfig
from omnihuman_train.config import SegmentConfig
from omnihuman_train.data.manifest import MANIFEST, Bucket, SampleRecord, write_manifest
from omnihuman_train.data.plan import BatchConfig
from omnihuman_train.data.shards import STATES, Index, write_index, write_tar
from omnihuman_train.data.stream import FlowStream, StreamConfig
from omnihuman_train.stages import Ratios, Stage

TINY_MODEL = Path(__file__).parents[3] / "packages/omnihuman-infer/src/omnihuman_infer/pretrained/tiny"
SPEC = {"channels": 24, "temporal_stride": 2, "spatial_stride": 2}
TEXT_LENGTH = 6
SHORT, LONG = Bucket(11, 8, 8), Bucket(13, 4, 12)
STAGES = (
    Stage(name="text", steps=4, ratios=Ratios(text=0.9, audio=0.0, pose=0.0)),
    Stage(name="all", steps=400, ratios=Ratios(text=0.9, audio=0.5, pose=0.25)),
)
SEGMENT = SegmentConfig(latent_frames=4, motion_latents=2, continuing_ratio=0.5)


def key_of(number: int) -> str:
    return hashlib.sha1(str(number).encode()).hexdigest()


def record(number: int, bucket: Bucket = SHORT, **changes: Any) -> SampleRecord:
    values = {
        "key": key_of(number),
        "source": f"toy/{number}",
        "start": 0.0,
        **bucket._asdict(),
        "fps": 25.0,
        "has_text": number % 5 != 0,
        "has_audio": number % 2 == 0,
        "has_pose": number % 3 == 0,
        "has_mouth": True,
        "licence": ("CC-BY-4.0", "own")[number % 2],
        **changes,
    }
    return SampleRecord(**values)


def states(number: int, bucket: Bucket) -> dict[str, dict[str, torch.Tensor]]:
    """Tensors of a sample; every one of them tells its number."""
    generator = torch.Generator().manual_seed(number)
    t, h, w = 1 + (bucket.frames - 1) // 2, bucket.height // 2, bucket.width // 2
    length = 1 + number % TEXT_LENGTH
    return {
        "latents.safetensors": {
            "latents": torch.randn(24, t, h, w, generator=generator).bfloat16(),
            "reference": torch.randn(24, 1, h, w, generator=generator).bfloat16(),
            "mouth_region": torch.rand(t, h, w, generator=generator) < 0.3,
            "hand_region": torch.rand(t, h, w, generator=generator) < 0.2,
        },
        "audio.safetensors": {"states": torch.full((bucket.frames, 1, 2), number / 8).half()},
        "pose.safetensors": {
            "keypoints": torch.rand(bucket.frames, 133, 3, generator=generator).half(),
            "mouth_open": torch.full((bucket.frames,), number / 10),
        },
        "text.safetensors": {
            "values": torch.full((length,), number + 1, dtype=torch.long),
            "mask": torch.ones(length, dtype=torch.bool),
        },
    }


def write_states(folder: Path, buckets: Sequence[Bucket], shard_size: int = 4) -> Path:
    """An encoded data set with one sample for each entry of ``buckets``."""
    folder.mkdir(parents=True)
    members = [
        (key_of(i), {name: save(tensors) for name, tensors in states(i, bucket).items()} | {"json": b"{}"})
        for i, bucket in enumerate(buckets)
    ]
    shards = [
        write_tar(folder / f"shard-{start // shard_size:06d}.tar", members[start : start + shard_size])
        for start in range(0, len(members), shard_size)
    ]
    write_manifest(folder / MANIFEST, [record(i, bucket) for i, bucket in enumerate(buckets)])
    recipe = {"latent_spec": SPEC, "text_length": TEXT_LENGTH}
    write_index(folder, Index(kind=STATES, recipe=recipe, broken={}, shards=tuple(shards)))
    return folder


def flow_stream(
    data: Path,
    *,
    batch: BatchConfig | None = None,
    rank: int = 0,
    world: int = 1,
    mouth_truth: bool = False,
    trim_texts: bool = True,
    segment: SegmentConfig = SEGMENT,
    **options: Any,
) -> FlowStream:
    return FlowStream(
        data,
        StreamConfig(batch=batch or BatchConfig(batch_size=4), **options),
        segment,
        STAGES,
        seed=3,
        pose_extractor=FakePoseExtractor(FakePoseExtractorConfig()),
        trim_texts=trim_texts,
        mouth_truth=mouth_truth,
        rank=rank,
        world=world,
    )


def write_clip(
    path: Path, *, frames: int, fps: int = 25, size: tuple[int, int] = (32, 48), beep: float | None = None
) -> Path:
    """A video whose frame ``i`` has the grey level ``8 i``; with sound: silence, and a click at ``beep`` seconds."""
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=fps, options={"crf": "1", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        sound: Any = container.add_stream("aac", rate=48000, layout="stereo") if beep is not None else None
        for number in range(frames):
            picture = np.full((*size, 3), 8 * number % 256, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
        if sound is not None:
            wave = np.zeros((2, frames * 48000 // fps), dtype=np.float32)
            wave[:, round(beep * 48000) : round(beep * 48000) + 480] = 0.9
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="stereo")
            frame.rate, frame.pts = 48000, 0
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
    return path
