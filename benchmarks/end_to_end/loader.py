"""The data stream against the least that could be done: reading the same bytes, decoding the same videos.

    taskset -c 0 python benchmarks/end_to_end/loader.py [--repeats 7] [--save]

Encoded clips: batches of every sample once, against reading the shards from end to end, all from the page cache. Two
ways to read: into memory as large as a batch, where the bytes must be in the end; and over and over into 4 MiB, which
never leave the processor's cache. Video: batches of decoded frames, against PyAV alone on the same files and the same
number of threads, its frames taken as arrays.

Both sides run in turns in one process and are timed in CPU seconds, user and system, of all threads: other load on the
machine changes them little. The ratio is the median over pairs, given with the smallest and the largest.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import report
import torch
from safetensors.torch import save

from omnihuman_core.contracts import LatentSpec
from omnihuman_core.testing.fake_encoders import FakePoseExtractor, FakePoseExtractorConfig
from omnihuman_train.config import SegmentConfig
from omnihuman_train.data.manifest import MANIFEST, Bucket, SampleRecord, write_manifest
from omnihuman_train.data.media import encode_video
from omnihuman_train.data.plan import BatchConfig
from omnihuman_train.data.shards import CLIPS, STATES, Index, write_index, write_tar
from omnihuman_train.data.stream import FlowStream, StreamConfig
from omnihuman_train.data.video_stream import VideoStream
from omnihuman_train.stages import Ratios, Stage

SPEC = {"channels": 16, "temporal_stride": 4, "spatial_stride": 8}
# No pose is kept: drawing skeletons is work of its own.
STAGES = (Stage(name="text+audio", steps=1, ratios=Ratios(text=0.9, audio=0.5, pose=0.0)),)
SKELETON = FakePoseExtractor(FakePoseExtractorConfig())
CHUNK = 2**22

# Name, shape of the clips, layers and width of the audio states, tokens and width of the text states, samples, batch.
LARGE = ("480p, 4.8 s", Bucket(121, 480, 832), (4, 768), (128, 4096), 48, 8)
SMALL = ("64 px, 2 s", Bucket(49, 64, 64), (1, 160), (24, 12), 2048, 64)


def states(bucket: Bucket, audio: tuple[int, int], text: tuple[int, int]) -> dict[str, bytes]:
    """Members of an encoded sample of random numbers."""
    t, h, w = (LatentSpec(**SPEC).latent_shape(*bucket))[1:]
    region = torch.zeros(t, h, w, dtype=torch.bool)
    tensors = {
        "latents.safetensors": {
            "latents": torch.randn(16, t, h, w).bfloat16(),
            "reference": torch.randn(16, 1, h, w).bfloat16(),
            "mouth_region": region,
            "hand_region": region.clone(),
        },
        "audio.safetensors": {"states": torch.randn(bucket.frames, *audio).half()},
        "text.safetensors": {"values": torch.randn(*text).bfloat16(), "mask": torch.ones(text[0], dtype=torch.bool)},
        "pose.safetensors": {
            "keypoints": torch.rand(bucket.frames, 133, 3).half(),
            "mouth_open": torch.zeros(bucket.frames),
        },
    }
    return {name: save(value) for name, value in tensors.items()} | {"json": b"{}"}


def clip(bucket: Bucket, seed: int) -> dict[str, bytes]:
    """A video of smooth motion with grain, as pictures from a camera have it."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, 6, 9, 16, generator=generator) * 255
    video = torch.nn.functional.interpolate(small, size=tuple(bucket), mode="trilinear")[0]
    video += torch.randn(video.shape, generator=generator) * 3
    return {"mp4": encode_video(video.clamp(0, 255).byte().permute(1, 2, 3, 0).contiguous(), 25.0), "json": b"{}"}


def data_set(
    folder: Path, kind: str, bucket: Bucket, count: int, make: Callable[[int], dict[str, bytes]], recipe: dict[str, Any]
) -> None:
    """A data set of ``count`` samples in eight shards."""
    folder.mkdir()
    keys = [f"{i:040x}" for i in range(count)]
    records = [
        SampleRecord(
            key=key, source="benchmark", start=0.0, **bucket._asdict(), fps=25.0, has_text=True, has_audio=True,
            has_pose=True, has_mouth=False, licence="Apache-2.0",
        )
        for key in keys
    ]  # fmt: skip
    size = -(-count // 8)
    shards = [
        write_tar(folder / f"shard-{n:06d}.tar", ((keys[i], make(i)) for i in range(start, min(start + size, count))))
        for n, start in enumerate(range(0, count, size))
    ]
    write_manifest(folder / MANIFEST, records)
    write_index(folder, Index(kind=kind, recipe=recipe, broken={}, shards=tuple(shards)))


def raw_read(folder: Path, buffer: memoryview) -> int:
    """Every byte of the shards, in order, into one buffer, from its start again when it is full."""
    total = place = 0
    for path in sorted(folder.glob("*.tar")):
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer[place : place + CHUNK]):
                total += count
                place = (place + count) % (len(buffer) - CHUNK + 1)
    return total


def paired(base: Callable[[], object], ours: Callable[[], object], repeats: int) -> dict[str, Any]:
    """Speed of ``ours`` over that of ``base``: median, smallest and largest of the pairs, and both medians."""
    # The first pair opens files and fills caches.
    times = {name: seconds[1:] for name, seconds in report.in_turns({"base": base, "ours": ours}, repeats + 1).items()}
    ratio, least, most = report.ratios(times["base"], times["ours"])
    medians = {f"{name}_s": report.median(seconds) for name, seconds in times.items()}
    return {**medians, "ratio": ratio, "ratio_min": least, "ratio_max": most}


def measure_states(folder: Path, repeats: int) -> list[dict[str, Any]]:
    rows = []
    variants = {
        "read": {},
        "read, sha256": {"verify": True},
    }
    for name, bucket, audio, text, count, batch in (LARGE, SMALL):
        data = folder / f"states-{count}"
        members = states(bucket, audio, text)
        data_set(data, STATES, bucket, count, lambda i, m=members: m, {"latent_spec": SPEC, "text_length": text[0]})
        size = sum(path.stat().st_size for path in data.glob("*.tar"))
        # Written once, as the memory of batches is.
        sinks = {"batch": memoryview(bytearray(size * batch // count)), "4 MiB": memoryview(bytearray(CHUNK))}
        for what, options in variants.items():
            config = StreamConfig(batch=BatchConfig(batch_size=batch), threads=1, **options)
            stream = FlowStream(data, config, SegmentConfig(latent_frames=8), STAGES, seed=0, pose_extractor=SKELETON)
            place = [0]

            def epoch(stream: FlowStream = stream, place: list[int] = place, steps: int = count // batch) -> None:
                # Read now, not ahead: the work ahead of one pair would count in the next.
                for _ in range(steps):
                    stream.read(place[0])
                    place[0] += 1

            for sink, buffer in sinks.items():
                result = paired(lambda d=data, b=buffer: raw_read(d, b), epoch, repeats)
                rate = {"base_mib_s": round(size / 2**20 / result["base_s"]), "mib": round(size / 2**20)}
                rows.append({"what": f"{name}, {what}", "base": f"read into {sink}", **result, **rate})
    return rows


def measure_video(folder: Path, repeats: int, threads: int) -> dict[str, Any]:
    import av

    bucket, count, batch = Bucket(49, 480, 832), 8, 4
    data = folder / "clips"
    clips = [clip(bucket, seed) for seed in range(count)]
    data_set(data, CLIPS, bucket, count, lambda i: clips[i], {})
    stream = VideoStream(
        data, StreamConfig(batch=BatchConfig(batch_size=batch), threads=threads, ahead=1), frames=None, seed=0
    )
    place = [0]

    def decode(members: dict[str, bytes]) -> int:
        with av.open(io.BytesIO(members["mp4"])) as container:
            container.streams.video[0].codec_context.thread_count = 1
            return sum(frame.to_ndarray(format="rgb24").nbytes for frame in container.decode(video=0))

    def bare() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(decode, clips))

    def epoch() -> None:
        # Read now, not ahead: the work ahead of one pair would count in the next.
        for _ in range(count // batch):
            stream.read(place[0])
            place[0] += 1

    return {"what": "video, 480p, 49 frames", "base": "PyAV", **paired(bare, epoch, repeats)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="threads of both sides, for video")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure_states(Path(folder), arguments.repeats)
        rows.append(measure_video(Path(folder), arguments.repeats, arguments.threads))
    report.show("Data stream, seconds, median", rows)
    if arguments.save:
        report.save("loader", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
