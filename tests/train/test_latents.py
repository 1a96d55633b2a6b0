"""Encoding of clips, and which latent positions a mouth or a hand touches, against brute force."""

from pathlib import Path

import pytest
import torch

from omnihuman_core.contracts import LatentSpec
from omnihuman_core.testing.fake_encoders import FakeAudioExtractor, FakeAudioExtractorConfig
from omnihuman_core.testing.fakes import FakeVAE, FakeVAEConfig
from omnihuman_train.config import ClipsConfig
from omnihuman_train.data.cached import Shards, shard_paths
from omnihuman_train.data.characters import make_clip, split_seed
from omnihuman_train.data.clips import bucket_name, from_bytes, render_clips
from omnihuman_train.data.latents import encode_clips
from omnihuman_train.data.regions import box_mask, latent_region

CLIPS = ClipsConfig(
    sizes=((32, 32), (32, 16)), clips=(3, 1), framings=(("half", "face"), ("whole",)), num_frames=9, shard_size=2
)


def nothing(count: int) -> None:
    pass


def random_boxes(count: int, persons: int, seed: int = 0) -> torch.Tensor:
    corners = torch.rand(count, persons, 2, 2, generator=torch.Generator().manual_seed(seed)).sort(dim=2).values
    return corners.flatten(2)


def touches(box: list[float], row: int, column: int, height: int, width: int) -> bool:
    """Whether box and cell share an area, by the length of their overlap along each side."""
    x0, y0, x1, y1 = box
    across = min(x1, (column + 1) / width) - max(x0, column / width)
    down = min(y1, (row + 1) / height) - max(y0, row / height)
    return across > 0 and down > 0


def test_box_mask_equals_brute_force() -> None:
    boxes, (height, width) = random_boxes(6, 2), (4, 8)
    boxes[2, 1] = 0
    boxes[3, 0] = torch.tensor([0.2, 0.2, 0.2, 0.9])
    # Its sides lie on the grid: it touches one cell, not nine.
    boxes[4, 0] = torch.tensor([0.125, 0.25, 0.25, 0.5])
    boxes = boxes.double()
    mask = box_mask(boxes, height, width)
    for frame in range(6):
        for row in range(height):
            for column in range(width):
                want = any(touches(box, row, column, height, width) for box in boxes[frame].tolist())
                assert bool(mask[frame, row, column]) == want, (frame, row, column)


def test_latent_region_gathers_the_frames_behind_each_latent_frame() -> None:
    spec = LatentSpec(channels=4, temporal_stride=4, spatial_stride=8)
    boxes = random_boxes(9, 2, seed=3).double()
    region = latent_region(boxes, spec, 24, 32)
    assert region.shape == (3, 3, 4)
    for index, frames in enumerate(([0], [1, 2, 3, 4], [5, 6, 7, 8])):
        for row in range(3):
            for column in range(4):
                want = any(touches(box, row, column, 3, 4) for t in frames for box in boxes[t].tolist())
                assert bool(region[index, row, column]) == want


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "clips"
    render_clips(CLIPS, folder, progress=nothing)
    return folder


def test_rendered_clips_are_the_characters(clips: Path) -> None:
    assert sorted(path.name for path in clips.iterdir()) == [bucket_name(32, 16), bucket_name(32, 32)]
    square, tall = (Shards(shard_paths(clips / name)) for name in ("32x32", "32x16"))
    assert (len(square), len(tall)) == (3, 1)
    # The second bucket goes on with the seeds after those of the first.
    for shards, row, index, size, framing in (
        (square, 1, 1, (32, 32), "face"),
        (square, 2, 2, (32, 32), "half"),
        (tall, 0, 3, (32, 16), "whole"),
    ):
        clip = make_clip(split_seed("train", index), num_frames=9, height=size[0], width=size[1], framing=framing)
        stored = {key: value[row] for key, value in shards.tensors.items()}
        # A byte is 1 / 127.5 wide.
        assert (from_bytes(stored["video"]) - clip.video).abs().max() <= 0.5 / 127.5 + 1e-6
        assert (from_bytes(stored["reference"])[:, 0] - clip.reference).abs().max() <= 0.5 / 127.5 + 1e-6
        assert torch.equal(stored["mouth_open"], clip.mouth_open)
        assert (stored["keypoints"] - clip.keypoints).abs().max() < 1e-3
        assert (bool(stored["has_audio"]), bool(stored["has_pose"])) == (clip.has_audio, clip.has_pose)
        assert shards.texts["caption"][row] == clip.caption
        persons = clip.mouth_box.shape[1]
        assert torch.equal(stored["mouth_box"][:, :persons], clip.mouth_box)
        assert stored["mouth_box"][:, persons:].abs().sum() == 0


def test_encoded_clips_hold_what_vae_and_extractor_give(clips: Path, tmp_path: Path) -> None:
    vae = FakeVAE(FakeVAEConfig(temporal_stride=4, spatial_stride=8, channels=16))
    audio = FakeAudioExtractor(FakeAudioExtractorConfig())
    counts: list[int] = []
    encode_clips(clips / "32x32", tmp_path, vae, audio, fps=25.0, progress=counts.append)
    assert counts == [2, 1]
    source, made = Shards(shard_paths(clips / "32x32")), Shards(shard_paths(tmp_path))
    assert made.tensors["latents"].shape == (3, 16, 3, 4, 4)
    assert made.tensors["latents"].dtype == torch.bfloat16
    with torch.no_grad():
        want = vae.encode(from_bytes(source.tensors["video"]))
        reference = vae.encode(from_bytes(source.tensors["reference"]))
    torch.testing.assert_close(made.tensors["latents"].float(), want, atol=0.02, rtol=0.02)
    torch.testing.assert_close(made.tensors["reference"].float(), reference, atol=0.02, rtol=0.02)
    states = audio.align(audio.extract(source.tensors["waveform"].float()), fps=25.0, num_frames=9)
    torch.testing.assert_close(made.tensors["audio"].float(), states, atol=1e-3, rtol=1e-2)
    region = latent_region(source.tensors["mouth_box"][0], vae.latent_spec, 32, 32)
    assert torch.equal(made.tensors["mouth_region"][0], region)
    assert region.any()
    assert made.texts == source.texts
    for key in ("keypoints", "mouth_open", "has_audio", "has_pose"):
        assert torch.equal(made.tensors[key], source.tensors[key])
    # Clip 1 is a face: it shows no hands; the centre of a hand that clip 0 shows lies in its region.
    assert not made.tensors["hand_region"][1].any()
    x, y, seen = source.tensors["hands"][0, 0, 0, 0].tolist()
    assert seen
    assert made.tensors["hand_region"][0, 0, int(y * 4), int(x * 4)]


def test_encoding_again_leaves_what_is_there(clips: Path, tmp_path: Path) -> None:
    vae = FakeVAE(FakeVAEConfig(temporal_stride=4, spatial_stride=8, channels=4))
    audio = FakeAudioExtractor(FakeAudioExtractorConfig())
    encode_clips(clips / "32x32", tmp_path, vae, audio, fps=25.0, progress=nothing)
    first, second = shard_paths(tmp_path)
    kept, missing = first.read_bytes(), second.read_bytes()
    stamp = first.stat().st_mtime_ns
    second.unlink()
    encode_clips(clips / "32x32", tmp_path, vae, audio, fps=25.0, progress=nothing)
    assert (first.read_bytes(), second.read_bytes()) == (kept, missing)
    assert first.stat().st_mtime_ns == stamp
