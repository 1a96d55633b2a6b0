"""Batches of encoded clips: the same for any number of processes and threads, and robust against broken bytes."""

import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from omnihuman_core.testing.fake_encoders import FakePoseExtractor, FakePoseExtractorConfig
from omnihuman_train.config import SegmentConfig
from omnihuman_train.data.buffers import BufferPool
from omnihuman_train.data.plan import BatchConfig
from omnihuman_train.data.shard_set import ShardSet
from omnihuman_train.data.shards import BrokenShardError
from omnihuman_train.data.stream import FlowStream, StreamConfig
from omnihuman_train.distributed.mesh import World
from omnihuman_train.recipes import stage1
from omnihuman_train.stage_run import streams

from ..models import flow_batches, write_latents
from ..stage_toys import toy, write_encoded
from .toy import LONG, SEGMENT, SHORT, STAGES, TEXT_LENGTH, flow_stream, key_of, states, write_states

PER_ROW = (
    "latents", "reference", "audio", "text_values", "text_mask", "has_audio", "mouth_open", "mouth_region",
    "hand_region", "seeds",
)  # fmt: skip
STEPS = (0, 1, 5, 6, 30, 31, 300)
NUMBER = {key_of(number): number for number in range(100)}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_states(tmp_path / "data", [SHORT] * 9 + [LONG] * 6)


def rows(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """A batch row by row, with the map of each row that has one."""
    maps = iter(batch["pose_maps"] if batch["pose_maps"] is not None else ())
    found = []
    for row, key in enumerate(batch["key"]):
        values = {name: batch[name][row] for name in PER_ROW}
        values |= {f"keep.{name}": keep[row] for name, keep in batch["keep"].items()}
        found.append({"key": key, **values, "map": next(maps) if batch["keep"]["pose"][row] else torch.zeros(0)})
    return found


def same(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(v.equal(y[k]) if isinstance(v, Tensor) else v == y[k] for k, v in x.items())
        for x, y in zip(a, b, strict=True)
    )


def test_every_row_holds_one_sample_as_it_was_written(data: Path) -> None:
    stream, extractor = flow_stream(data), FakePoseExtractor(FakePoseExtractorConfig())
    buckets = set()
    for step in range(30):
        batch = stream(step)
        assert len(batch["key"]) == 4
        for row in rows(batch):
            number = NUMBER[row["key"]]
            bucket = SHORT if number < 9 else LONG
            buckets.add(bucket)
            want = {name: value for tensors in states(number, bucket).values() for name, value in tensors.items()}
            for name in ("latents", "reference", "mouth_region", "hand_region", "mouth_open"):
                assert row[name].equal(want[name].to(row[name].dtype)), name
            assert row["audio"].equal(want["states"].float())
            length = len(want["mask"])
            assert row["text_values"].tolist() == [number + 1] * length + [0] * (TEXT_LENGTH - length)
            assert row["text_mask"].tolist() == [True] * length + [False] * (TEXT_LENGTH - length)
            assert bool(row["has_audio"]) == (number % 2 == 0)
            # Principle 1: what a sample is not fit for is never kept.
            assert not (row["keep.audio"] and number % 2)
            assert not (row["keep.pose"] and number % 3)
            assert not (row["keep.text"] and number % 5 == 0)
            if row["keep.pose"]:
                want_map = extractor.extract(want["keypoints"].float(), size=(bucket.height, bucket.width))
                assert row["map"].equal(want_map)
    assert buckets == {SHORT, LONG}


def test_keys_are_those_of_the_batches_in_memory(data: Path, tmp_path: Path) -> None:
    batch, old = flow_stream(data)(7), flow_batches(write_latents(tmp_path / "latents"))(7)
    assert old.keys() == batch.keys() - {"key"}
    for name, value in old.items():
        if isinstance(value, Tensor) and name != "pose_maps":
            assert (batch[name].dtype, batch[name].ndim) == (value.dtype, value.ndim), name


@pytest.mark.parametrize("world", [2, 4, 8])
def test_the_rows_of_all_ranks_are_the_batch_of_one(data: Path, world: int) -> None:
    batch = BatchConfig(batch_size=8)
    whole, parts = (
        flow_stream(data, batch=batch),
        [flow_stream(data, batch=batch, rank=r, world=world) for r in range(world)],
    )
    for step in STEPS:
        one, many = whole(step), [part(step) for part in parts]
        assert same(rows(one), [row for part in many for row in rows(part)])
        assert {(b["start"], b["stop"], b["motion_latents"]) for b in (one, *many)} == {
            (one["start"], one["stop"], one["motion_latents"])
        }
    assert whole(0)["seeds"].unique().numel() == 8


def test_the_token_budget_counts_the_segment(data: Path) -> None:
    # 4 latent frames of 4 x 4 and of 2 x 6 positions.
    stream = flow_stream(data, batch=BatchConfig(token_budget=200, multiple=2))
    assert {bucket: stream.plan.sizes[bucket] for bucket in (SHORT, LONG)} == {SHORT: 2, LONG: 4}
    for step in range(12):
        batch = stream(step)
        _, _, _, height, width = batch["latents"].shape
        assert len(batch["key"]) * SEGMENT.latent_frames * height * width <= 200


@pytest.mark.parametrize("options", [{"threads": 1, "ahead": 0}, {"threads": 3, "ahead": 4}, {"verify": True}])
def test_threads_reading_ahead_and_resuming_change_nothing(data: Path, options: dict[str, Any]) -> None:
    whole, resumed = flow_stream(data), flow_stream(data, **options)
    want = [rows(whole.read(step)) for step in range(20)]
    # Begun in the middle, going on, back again, and far away: no state but the step.
    for step in (*range(8, 20), 3, 4, 19, 0):
        assert same(rows(resumed(step)), want[step])


def test_a_batch_that_is_held_is_not_written_to(tmp_path: Path) -> None:
    # Large enough for memory that is used again.
    stream = flow_stream(write_states(tmp_path / "large", [SHORT._replace(height=64, width=64)] * 8), threads=2)
    held = [stream(step)["latents"] for step in range(12)]
    for step, latents in enumerate(held):
        assert latents.equal(stream.read(step)["latents"])


def test_memory_is_used_again_once_no_view_is_left() -> None:
    pool = BufferPool()
    first = pool.empty((2**20,), torch.uint8)
    place, view = first.data_ptr(), first.view(2, -1)[1]
    del first
    assert pool.empty((2**20,), torch.uint8).data_ptr() != place
    del view
    assert place in {tensor.data_ptr() for tensor in [pool.empty((2**20 - 5,), torch.uint8) for _ in range(3)]}


def test_batches_keep_the_dtype_of_the_files(data: Path) -> None:
    batch = flow_stream(data)(9)
    assert [batch[name].dtype for name in ("latents", "reference", "audio")] == [
        torch.bfloat16,
        torch.bfloat16,
        torch.float16,
    ]


def read_steps(stream: FlowStream) -> None:
    for step in range(20):
        stream(step)


def damage(data: Path, number: int, member: str, offset: int, value: bytes) -> str:
    """Overwrite bytes of a member; returns the name of the shard."""
    samples = ShardSet(data)
    span = samples.members(number)[member]
    shard = samples.index.shards[samples.shard_of[number]].name
    with (data / shard).open("r+b") as file:
        file.seek(span.offset + offset)
        file.write(value)
    return shard


@pytest.mark.parametrize("member", ["latents.safetensors", "pose.safetensors", "text.safetensors", "audio.safetensors"])
@pytest.mark.parametrize("number", [0, 4])
def test_a_broken_sample_is_named_counted_and_replaced(
    data: Path, member: str, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    whole = flow_stream(data, batch=BatchConfig(batch_size=8))
    want = [whole.read(step)["key"] for step in range(20)]
    seen = set()
    shard = damage(data, number, member, 20, b"\xff\xff\xff\xff")
    with caplog.at_level(logging.WARNING):
        streams = [flow_stream(data, batch=BatchConfig(batch_size=8), rank=rank, world=2) for rank in (0, 1)]
        for step in range(20):
            got = [row for stream in streams for row in rows(stream(step))]
            assert all(row["latents"].isfinite().all() for row in got)
            for before, row in zip(want[step], got, strict=True):
                seen.add(before)
                if before != key_of(number):
                    assert row["key"] == before
                else:
                    # Of the same bucket, and whole.
                    assert row["key"] in {key_of(i) for i in range(9) if i != number}
    assert key_of(number) in seen
    assert all(stream.reader.broken.keys() <= {key_of(number)} for stream in streams)
    # Once for each rank that met it, not once for each time.
    lines = [line.getMessage() for line in caplog.records]
    assert 1 <= len(lines) <= 2
    assert all(key_of(number) in line and f"toy/{number}" in line and shard in line for line in lines)


def test_replacements_do_not_depend_on_the_number_of_processes(data: Path) -> None:
    damage(data, 2, "latents.safetensors", 20, b"\xff\xff\xff\xff")
    damage(data, 3, "latents.safetensors", 20, b"\xff\xff\xff\xff")
    batch = BatchConfig(batch_size=8)
    whole = flow_stream(data, batch=batch, threads=1)
    parts = [flow_stream(data, batch=batch, rank=rank, world=4) for rank in range(4)]
    for step in STEPS:
        assert same(rows(whole(step)), [row for part in parts for row in rows(part(step))])
    assert whole.reader.broken.keys() == {key_of(2), key_of(3)}


def test_a_flipped_bit_of_the_payload_is_found_where_asked_for(data: Path) -> None:
    damage(data, 1, "latents.safetensors", 1000, b"\x55")
    stream = flow_stream(data, verify=True)
    keys = {key for step in range(20) for key in stream(step)["key"]}
    assert key_of(1) not in keys
    assert "sha256" in stream.reader.broken[key_of(1)]


def test_a_bucket_without_a_readable_sample_stops(data: Path) -> None:
    for number in range(9, 15):
        damage(data, number, "pose.safetensors", 0, b"\xff" * 8)
    stream = flow_stream(data)
    with pytest.raises(ValueError, match=r"no sample of the bucket 13x4x12 has a readable pose\.safetensors"):
        read_steps(stream)


def test_a_shard_that_changes_while_it_is_read_stops_with_its_name(data: Path) -> None:
    stream = flow_stream(data, ahead=0)
    stream(0)
    path = data / "shard-000001.tar"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(700)
    with pytest.raises(BrokenShardError, match=r"shard-000001\.tar: does not hold .* cut or changed"):
        read_steps(stream)
    with pytest.raises(BrokenShardError, match=rf"shard-000001\.tar: has 700 bytes, the index says {size}"):
        flow_stream(data)


def test_a_shard_of_other_content_stops_with_its_name(data: Path) -> None:
    first, second = data / "shard-000000.tar", data / "shard-000001.tar"
    # Of the same size, but with other samples.
    assert first.stat().st_size == second.stat().st_size
    second.write_bytes(first.read_bytes())
    stream = flow_stream(data)
    with pytest.raises(BrokenShardError, match=r"shard-000001\.tar: does not hold"):
        read_steps(stream)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"batch": BatchConfig(batch_size=6), "world": 4},
            "4 processes cannot share batches of 6 .* set run.batch_size, or stream.batch.multiple .* of 4 ",
        ),
        ({"rank": 2, "world": 2}, "rank must be in"),
        ({"batch": BatchConfig(token_budget=40)}, "token_budget is 40, but 1 samples of .* have"),
        ({"licences": ("MIT",)}, "no sample has the licence 'MIT'"),
    ],
)
def test_what_does_not_fit_is_refused(data: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flow_stream(data, **options)


def test_clips_too_short_and_unknown_mouths_are_refused(data: Path) -> None:
    extractor = FakePoseExtractor(FakePoseExtractorConfig())
    config = StreamConfig(batch=BatchConfig(batch_size=4))
    with pytest.raises(ValueError, match="needs clips of at least 8 latent frames, got 6"):
        FlowStream(data, config, SegmentConfig(latent_frames=7), STAGES, seed=0, pose_extractor=extractor)
    flow_stream(data, mouth_truth=True)
    manifest = data / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace('"has_mouth":true', '"has_mouth":false', 1))
    with pytest.raises(
        ValueError, match=r"not known of 1 samples, the first is \w{40}; set flow.mouth_probe_weight to 0"
    ):
        flow_stream(data, mouth_truth=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [({"threads": 0}, "threads"), ({"ahead": -1}, "ahead")],
)
def test_stream_settings_that_cannot_be_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StreamConfig(batch=BatchConfig(batch_size=4), **values)


def test_encoded_clips_need_no_media_library(data: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('av', 'webdataset', 'matplotlib', 'PIL', 'cv2'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from tests.train.data_sets.toy import flow_stream\n"
        f"print(len(flow_stream(Path({str(data)!r}))(0)['key']))\n"
    )
    root = Path(__file__).parents[3]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.returncode) == ("4", 0), result.stderr


@pytest.mark.parametrize(("ratio", "motion", "shapes"), [(0.5, 2, 4), (0.0, 2, 2), (1.0, 2, 2), (0.5, 0, 2)])
def test_the_shapes_of_a_stream_are_counted(data: Path, ratio: float, motion: int, shapes: int) -> None:
    segment = SegmentConfig(latent_frames=4, motion_latents=motion, continuing_ratio=ratio)
    stream = flow_stream(data, segment=segment)
    met = {(batch["latents"].shape, batch["motion_latents"]) for batch in map(stream.read, range(30))}
    assert stream.shapes() == len(met) == shapes


def test_parts_of_a_stream_share_what_is_known_of_the_data(data: Path) -> None:
    whole = flow_stream(data)
    parts = [whole.part(part, 2) for part in range(2)]
    for name in ("data", "plan", "reader", "spec"):
        assert getattr(parts[0], name) is getattr(parts[1], name) is getattr(whole, name)
    for step in STEPS:
        mine = [row for part in parts for row in rows(part(step))]
        assert same(mine, rows(whole(step)))
        assert same(rows(parts[1](step)), rows(flow_stream(data, rank=1, world=2)(step)))
    with pytest.raises(ValueError, match="3 processes cannot share batches of 4 samples"):
        whole.part(0, 3)


def test_parts_of_a_step_are_parts_of_one_stream(tmp_path: Path) -> None:
    config = toy(stage1.small(), write_encoded(tmp_path / "encoded"), None)
    config = replace(config, run=replace(config.run, accumulate=2))
    first, second = streams(config, World(device=torch.device("cpu")))
    assert first.data is second.data


def test_texts_end_with_the_longest_of_a_step_that_keeps_them_all(data: Path) -> None:
    stream, untrimmed = (
        flow_stream(data, batch=BatchConfig(batch_size=2)),
        flow_stream(data, batch=BatchConfig(batch_size=2), trim_texts=False),
    )
    seen = set()
    for step in range(60):
        batch = stream(step)
        lengths = batch["text_mask"].sum(1).tolist()
        kept = bool(batch["keep"]["text"].all())
        seen.add((kept, kept and lengths[0] == lengths[1]))
        assert batch.get("text_length") == (max(lengths) if kept else None)
        assert batch.get("text_padded") == (lengths[0] != lengths[1] if kept else None)
        assert "text_length" not in untrimmed(step)
    assert seen == {(False, False), (True, False), (True, True)}
