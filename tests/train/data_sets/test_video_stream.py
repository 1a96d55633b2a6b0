"""Pixels of packed clips: pictures among the windows, shared out, and whole clips drawn from all of a data set."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from omnihuman_train.data import media
from omnihuman_train.data.pack_characters import pack_characters
from omnihuman_train.data.plan import BatchConfig
from omnihuman_train.data.shard_set import ShardSet
from omnihuman_train.data.stream import StreamConfig
from omnihuman_train.data.video_stream import VideoStream, drawn_clips, open_clips

from .test_pack import nothing

CONFIG = StreamConfig(batch=BatchConfig(batch_size=2), threads=2)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "clips"
    pack_characters(folder, count=3, frames=9, sizes=[(32, 32), (48, 32)], shard_size=2, progress=nothing)
    return folder


def frames_of(data: ShardSet, key: str) -> torch.Tensor:
    """uint8 ``(T, 3, H, W)``."""
    number = next(i for i, record in enumerate(data.records) if record.key == key)
    clip = torch.empty(*data.records[number].bucket, 3, dtype=torch.uint8)
    media.decode_video(data.read(number, "mp4"), clip)
    return clip.permute(0, 3, 1, 2)


def test_pictures_come_at_their_ratio_and_from_anywhere(clips: Path) -> None:
    data = ShardSet(clips)
    stream = VideoStream(clips, CONFIG, frames=5, seed=1, image_ratio=0.3)
    batches = [stream(step) for step in range(100)]
    shapes = [tuple(batch["video"].shape) for batch in batches]
    assert {shape[3:] for shape in shapes} == {(32, 32), (48, 32)}
    assert {(shape[0], shape[2]) for shape in shapes} == {(2, 5), (10, 1)}
    pictures = [batch for batch in batches if batch["video"].shape[2] == 1]
    # Three standard deviations of a binomial draw.
    assert abs(len(pictures) / 100 - 0.3) < 3 * math.sqrt(0.3 * 0.7 / 100)
    places = set()
    for picture, key in zip(pictures[0]["video"], pictures[0]["key"], strict=True):
        found = [i for i, frame in enumerate(frames_of(data, key)) if frame.equal(picture[:, 0])]
        assert found
        places.add(found[0])
    assert len(places) > 2
    assert len(set(pictures[0]["key"])) == 3
    assert all(batch["weight"].shape == (*batch["video"].shape[:1], 1, *batch["video"].shape[2:]) for batch in batches)
    assert all(bool(batch["weight"].eq(1).all()) for batch in batches)


def test_pictures_are_shared_out_and_the_same_again(clips: Path) -> None:
    whole = VideoStream(clips, CONFIG, frames=5, seed=1, image_ratio=0.5)
    parts = [VideoStream(clips, CONFIG, frames=5, seed=1, image_ratio=0.5, rank=rank, world=2) for rank in (0, 1)]
    kinds = set()
    # Backwards: nothing depends on the steps before.
    for step in reversed(range(8)):
        batch, halves = whole(step), [part(step) for part in parts]
        assert torch.cat([half["video"] for half in halves]).equal(batch["video"])
        kinds.add(batch["video"].shape[2])
    assert kinds == {1, 5}


def test_no_pictures_means_the_draws_of_before(clips: Path) -> None:
    plain, none = (VideoStream(clips, CONFIG, frames=5, seed=1, **kind) for kind in ({}, {"image_ratio": 0.0}))
    assert all(plain(step)["video"].equal(none(step)["video"]) for step in range(3))


def test_pictures_need_a_length_of_windows(clips: Path) -> None:
    with pytest.raises(ValueError, match=r"image_ratio is 0\.5, which needs a length of windows"):
        VideoStream(clips, CONFIG, frames=None, seed=0, image_ratio=0.5)


def test_whole_clips_come_from_all_of_the_data_and_broken_ones_are_left_out(clips: Path) -> None:
    data = open_clips(clips, CONFIG)
    every = list(drawn_clips(data, 10, seed=0))
    assert len(every) == 6
    assert {tuple(clip.shape) for clip in every} == {(3, 9, 32, 32), (3, 9, 48, 32)}
    known = [frames_of(data, record.key).movedim(0, 1) for record in data.records]
    assert all(any(clip.equal(other) for other in known) for clip in every)
    assert [clip.sum() for clip in drawn_clips(data, 2, seed=0)] == [clip.sum() for clip in every[:2]]
    assert [clip.sum() for clip in drawn_clips(data, 6, seed=1)] != [clip.sum() for clip in every]


def test_a_clip_that_cannot_be_read_is_no_loss(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_clips(clips, CONFIG)
    read, broken = data.read, data.records[0].key

    def damaged(sample: int, member: str) -> bytes:
        return b"no video" if data.records[sample].key == broken else read(sample, member)

    monkeypatch.setattr(data, "read", damaged)
    assert len(list(drawn_clips(data, 6, seed=0))) == 5
    assert len(list(drawn_clips(data, 5, seed=0))) == 5
