"""Batches: functions of the step; keep draws by the two principles (paper section 3.3); the frames of a segment."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from omnihuman_core.testing.fake_encoders import FakePoseExtractor, FakePoseExtractorConfig
from omnihuman_train.config import RunConfig, SegmentConfig
from omnihuman_train.data.batches import VideoBatches
from omnihuman_train.data.cached import write_shard
from omnihuman_train.data.clips import from_bytes
from omnihuman_train.stages import Ratios, Stage

from .models import LATENT_FRAMES, SEGMENT, flow_batches, sample

WHOLE = (Stage(name="all", steps=1000, ratios=Ratios(text=0.9, audio=0.5, pose=0.25, reference=0.8)),)


def flat(batch: dict[str, object]) -> dict[str, object]:
    keep = batch["keep"]
    assert isinstance(keep, dict)
    whole = {**batch, **{f"keep.{name}": value for name, value in keep.items()}}
    whole.pop("keep")
    return whole


def same(a: dict[str, object], b: dict[str, object]) -> bool:
    first, second = flat(a), flat(b)
    return first.keys() == second.keys() and all(
        torch.equal(value, second[key]) if isinstance(value, Tensor) else value == second[key]  # type: ignore[arg-type]
        for key, value in first.items()
    )


def test_a_batch_depends_on_its_step_alone(latents: Path) -> None:
    forward, backward = flow_batches(latents), flow_batches(latents)
    steps = [0, 3, 7, 20]
    first = {step: forward(step) for step in steps}
    second = {step: backward(step) for step in reversed(steps)}
    assert all(same(first[step], second[step]) for step in steps)
    assert not same(first[7], first[20])


def test_all_entries_of_a_row_are_of_one_clip(latents: Path) -> None:
    batch = flow_batches(latents, stages=WHOLE)(5)
    clips = (batch["mouth_open"][:, 0] * 10).round().int().tolist()
    rows = [sample(i, has_audio=i % 2 == 0, has_pose=i % 3 == 0) for i in clips]
    for key in ("latents", "reference", "audio", "mouth_region", "hand_region", "mouth_open", "has_audio"):
        want = torch.stack([row[key] for row in rows])  # type: ignore[misc]
        assert torch.equal(batch[key], want.to(batch[key].dtype)), key
    assert [chr(ids[0] - 1) for ids in batch["text_values"].tolist()] == [row["caption"] for row in rows]
    assert batch["text_mask"].sum(1).tolist() == [1] * len(rows)


def test_captions_become_prompts_as_often_as_asked_and_change_nothing_else(latents: Path) -> None:
    captions, some, all_ = (flow_batches(latents, stages=WHOLE, prompts=share) for share in (0.0, 0.5, 1.0))
    changed = {0.5: [], 1.0: []}
    for step in range(40):
        plain, half, full = captions(step), some(step), all_(step)
        for share, batch in ((0.5, half), (1.0, full)):
            changed[share] += (batch["text_values"] != plain["text_values"]).any(dim=1).tolist()
            words = {"text_values", "text_mask"}
            assert same(*({k: v for k, v in b.items() if k not in words} for b in (batch, plain)))
        assert same(half, some(step))
    # One prompt in four gets no word put in: of a caption of one letter nothing else can change.
    counts = {share: sum(rows) / len(rows) for share, rows in changed.items()}
    assert abs(counts[1.0] - 0.75) < 0.07
    assert abs(counts[0.5] - 0.375) < 0.07


def test_maps_are_those_of_the_kept_samples_in_order(latents: Path) -> None:
    batches, extractor = flow_batches(latents, stages=WHOLE), FakePoseExtractor(FakePoseExtractorConfig())
    counts = set()
    for step in range(12):
        batch = batches(step)
        clips = [int(i) for i in (batch["mouth_open"][:, 0] * 10).round()[batch["keep"]["pose"]]]
        counts.add(len(clips))
        if not clips:
            assert batch["pose_maps"] is None
            continue
        keypoints = [sample(i, has_audio=True, has_pose=True)["keypoints"] for i in clips]
        want = torch.stack([extractor.extract(points.float(), size=(8, 8)) for points in keypoints])  # type: ignore[union-attr]
        assert torch.equal(batch["pose_maps"], want)
    assert len(counts) > 1


def test_keep_ratios_hold_among_eligible_samples_and_draws_are_independent(latents: Path) -> None:
    batches = flow_batches(latents, batch_size=64, stages=WHOLE)
    drawn = [batches(step) for step in range(60)]
    keep = {name: torch.cat([batch["keep"][name] for batch in drawn]) for name in drawn[0]["keep"]}
    clips = torch.cat([(batch["mouth_open"][:, 0] * 10).round().long() for batch in drawn])
    audible, posed = clips % 2 == 0, clips % 3 == 0
    # Principle 1: what a sample is not fit for is never kept, and it trains the rest all the same.
    assert not keep["audio"][~audible].any()
    assert not keep["pose"][~posed].any()
    assert keep["text"][~audible & ~posed].any()
    # Principle 2: the ratios are those of the stage; four standard deviations of a mean of that many draws.
    eligible = {"text": clips >= 0, "reference": clips >= 0, "audio": audible, "pose": posed}
    for name, ratio in vars(WHOLE[0].ratios).items():
        draws = keep[name][eligible[name]].float()
        assert abs(draws.mean() - ratio) < 4 * (ratio * (1 - ratio) / len(draws)) ** 0.5, name
    both = audible & posed
    audio, pose = keep["audio"][both].float(), keep["pose"][both].float()
    assert abs((audio * pose).mean() - 0.5 * 0.25) < 4 * (0.125 * 0.875 / len(audio)) ** 0.5
    assert (pose.bool() & ~audio.bool()).any()


def test_a_stage_drops_what_it_does_not_train(latents: Path) -> None:
    batches = flow_batches(latents)
    for step in range(4):
        keep = batches(step)["keep"]
        assert not keep["audio"].any()
        assert not keep["pose"].any()
        assert batches(step)["pose_maps"] is None
    assert any(batches(step)["keep"]["audio"].any() for step in range(4, 12))


def test_a_stage_of_pictures_has_first_frames_and_a_batch_of_its_own(latents: Path) -> None:
    text = Ratios(text=0.9, audio=0, pose=0)
    stages = (Stage(name="pictures", steps=1, ratios=text, pictures=True, batch_size=7), *WHOLE)
    batches = flow_batches(latents, batch_size=4, stages=stages)
    first, second = batches(0), batches(1)
    assert (first["start"], first["stop"], first["motion_latents"], len(first["latents"])) == (0, 1, 0, 7)
    assert (second["stop"] - second["start"], len(second["latents"])) == (SEGMENT.latent_frames, 4)
    assert len(set(first["seeds"].tolist() + second["seeds"].tolist())) == 11


def test_windows_start_a_clip_or_continue_inside_it(latents: Path) -> None:
    batches = flow_batches(latents, stages=WHOLE)
    windows = [(b["start"], b["stop"], b["motion_latents"]) for b in map(batches, range(120))]
    starting = [window for window in windows if window[2] == 0]
    continuing = [window for window in windows if window[2]]
    assert set(starting) == {(0, 4, 0)}
    # Latent frame 0 covers one pixel frame, unlike every frame of a segment that continues another.
    assert {start for start, _, _ in continuing} == {1, 2}
    assert all(stop - start == 4 and stop <= LATENT_FRAMES and motion == 2 for start, stop, motion in continuing)
    assert abs(len(continuing) / len(windows) - 0.5) < 4 * 0.5 / len(windows) ** 0.5


@pytest.mark.parametrize(("ratio", "motion"), [(0.0, {0}), (1.0, {2})])
def test_continuing_ratio_at_its_ends(latents: Path, ratio: float, motion: set[int]) -> None:
    segment = SegmentConfig(latent_frames=4, continuing_ratio=ratio)
    batches = flow_batches(latents, segment=segment)
    assert {batches(step)["motion_latents"] for step in range(20)} == motion


def test_clips_too_short_for_a_segment_are_refused(latents: Path) -> None:
    flow_batches(latents, segment=SegmentConfig(latent_frames=6, continuing_ratio=0.0))
    with pytest.raises(ValueError, match="needs clips of at least 7 latent frames, got 6"):
        flow_batches(latents, segment=SegmentConfig(latent_frames=6, continuing_ratio=0.5))
    with pytest.raises(
        ValueError, match=r"segment\.motion_latents must be in \[0, segment\.latent_frames = 2\), got 2"
    ):
        SegmentConfig(latent_frames=2)
    with pytest.raises(ValueError, match="continuing_ratio"):
        SegmentConfig(latent_frames=4, continuing_ratio=1.5)
    assert SEGMENT.latent_frames < LATENT_FRAMES


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Three clips of 7 frames; a pixel's value tells clip and frame; the mouth moves from cell to cell."""
    rows = []
    for index in range(3):
        value = 30 * index + torch.arange(7).view(1, 7, 1, 1)
        boxes = torch.zeros(7, 2, 4)
        boxes[:, 0] = torch.tensor([[0.25 * (t % 4), 0.5, 0.25 * (t % 4) + 0.25, 1.0] for t in range(7)])
        # One hand over the top left cell, from frame 3 on; the other three places for a hand are empty.
        hands = torch.zeros(7, 2, 2, 3)
        hands[3:, 0, 1] = torch.tensor([0.125, 0.25, 1.0])
        rows.append({"video": value.expand(3, 7, 2, 4).to(torch.uint8), "mouth_box": boxes, "hands": hands})
    (tmp_path / "2x4").mkdir()
    write_shard(tmp_path / "2x4" / "000000-000003.safetensors", rows)
    return tmp_path


@pytest.mark.parametrize("hand_weight", [1.0, 5.0])
def test_video_batches_are_windows_with_weighted_mouths_and_hands(clips: Path, hand_weight: float) -> None:
    run = RunConfig(steps=10, batch_size=6)
    weights = {"mouth_weight": 3.0, "hand_weight": hand_weight}
    batches, again = (VideoBatches(clips, run, frames=3, **weights) for _ in range(2))
    starts = set()
    for step in range(10):
        batch = batches(step)
        assert batch["video"].shape == (6, 3, 3, 2, 4)
        assert batch["weight"].shape == (6, 1, 3, 2, 4)
        pixels = ((batch["video"] + 1) * 127.5).round().long()
        for row, weight in zip(pixels, batch["weight"], strict=True):
            first = int(row[0, 0, 0, 0])
            start = first % 30
            starts.add(start)
            assert row[0, :, 0, 0].tolist() == [first, first + 1, first + 2]
            assert start + 3 <= 7
            want = torch.ones(1, 3, 2, 4)
            for t in range(3):
                want[0, t, 1, (start + t) % 4] = 3.0
                want[0, t, 0, 0] = hand_weight if start + t >= 3 else 1.0
            assert torch.equal(weight, want)
    assert starts == {0, 1, 2, 3, 4}
    assert all(torch.equal(batches(3)[key], again(3)[key]) for key in ("video", "weight"))


def test_a_window_longer_than_the_clips_is_refused(clips: Path) -> None:
    with pytest.raises(ValueError, match="vae_frames is 9, but there are clips of 7 frames"):
        VideoBatches(clips, RunConfig(steps=1, batch_size=1), frames=9, mouth_weight=1.0)


def test_bytes_span_the_range_of_pixels() -> None:
    assert from_bytes(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]
