"""Encoding: what the components give, bit for bit, however often it was stopped and by how many processes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from omnihuman_core.model_dir import load_component
from omnihuman_train.data import media
from omnihuman_train.data.build import BuildReport
from omnihuman_train.data.check import check_data
from omnihuman_train.data.clips import from_bytes
from omnihuman_train.data.encoder import EncodeConfig
from omnihuman_train.data.pack_characters import pack_characters
from omnihuman_train.data.regions import box_round, hand_boxes, latent_region
from omnihuman_train.data.shard_set import ShardSet
from omnihuman_train.data.shards import INDEX
from omnihuman_train.data.states import encode_states
from omnihuman_train.data.video_stream import VideoStream

from .test_pack import content, nothing
from .toy import SHORT, TINY_MODEL, BatchConfig, StreamConfig, flow_stream, write_states

MODEL = str(TINY_MODEL)
CONFIG = EncodeConfig(vae=MODEL, audio=MODEL, text=MODEL)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "clips"
    sizes = [(32, 32), (48, 32)]
    pack_characters(folder, count=3, frames=17, sizes=sizes, shard_size=2, progress=nothing)
    return folder


def encode(clips: Path, out: Path, config: EncodeConfig = CONFIG, **options: Any) -> BuildReport:
    return encode_states(clips, out, config, **{"progress": nothing, "total": nothing, **options})


@pytest.fixture(scope="module")
def encoded(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoded") / "states"
    encode(clips, folder)
    return folder


def test_states_are_what_the_components_give(clips: Path, encoded: Path) -> None:
    packed, states = ShardSet(clips), ShardSet(encoded)
    assert states.records == packed.records
    assert check_data(encoded, decode=True, progress=nothing).ok
    vae, audio, text = (load_component(MODEL, name) for name in ("vae", "audio_extractor", "text_extractor"))
    for number, record in enumerate(packed.records):
        members = {name: load(states.read(number, name)) for name in states.members(number) if name != "json"}
        video = torch.empty(*record.bucket, 3, dtype=torch.uint8)
        media.decode_video(packed.read(number, "mp4"), video)
        with torch.no_grad():
            want = vae.encode(from_bytes(video.permute(3, 0, 1, 2)[None]))[0].bfloat16()
        assert members["latents.safetensors"]["latents"].equal(want)
        picture = media.decode_picture(packed.read(number, "reference.png"), height=record.height, width=record.width)
        with torch.no_grad():
            reference = vae.encode(from_bytes(picture.permute(2, 0, 1)[None, :, None]))[0].bfloat16()
        assert members["latents.safetensors"]["reference"].equal(reference)
        known = load(packed.read(number, "pose.safetensors"))
        for name, boxes in (("mouth", known["mouth_box"]), ("hand", hand_boxes(known["hands"]))):
            region = latent_region(boxes, vae.latent_spec, record.height, record.width)
            assert members["latents.safetensors"][f"{name}_region"].equal(region)
        wave = media.decode_sound(packed.read(number, "flac"), samples=media.sound_samples(record.frames, 25.0))
        aligned = audio.align(audio.extract(wave[None]), fps=25.0, num_frames=record.frames)[0].half()
        assert members["audio.safetensors"]["states"].equal(aligned)
        features = text.extract([json.loads(packed.read(number, "json"))["captions"]["long"]])
        length = int(features.mask.sum())
        assert members["text.safetensors"]["values"].equal(features.values[0, :length])
        assert members["pose.safetensors"]["mouth_open"].equal(known["mouth_open"])
    # And so they come out of the stream, padded as the extractor pads.
    batch = flow_stream(encoded, batch=BatchConfig(batch_size=3))(0)
    captions = {
        record.key: json.loads(packed.read(i, "json"))["captions"]["long"] for i, record in enumerate(packed.records)
    }
    features = text.extract([captions[key] for key in batch["key"]])
    assert batch["text_values"].equal(features.values)
    assert batch["text_mask"].equal(features.mask)


def test_a_stopped_run_goes_on_to_the_same_bytes(clips: Path, encoded: Path, tmp_path: Path) -> None:
    done = []

    def stop(count: int) -> None:
        done.append(count)
        if sum(done) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(clips, tmp_path / "out", progress=stop)
    assert not (tmp_path / "out" / INDEX).exists()
    encode(clips, tmp_path / "out")
    assert content(tmp_path / "out") == content(encoded)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert encode(clips, tmp_path / "out").samples == 6
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def test_ranks_share_the_shards_and_the_last_one_writes_the_index(clips: Path, encoded: Path, tmp_path: Path) -> None:
    first = encode(clips, tmp_path / "out", rank=1, world=2)
    assert (first.shards, first.left) == (1, 2)
    assert not (tmp_path / "out" / INDEX).exists()
    assert encode(clips, tmp_path / "out", rank=0, world=2).left == 0
    assert content(tmp_path / "out") == content(encoded)
    # A rank that comes late finds everything done.
    assert encode(clips, tmp_path / "out", rank=1, world=2).samples == 6


def test_other_weights_or_clips_in_the_same_folder_are_refused(clips: Path, encoded: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"other settings \(vae, vae_bf16_sha256, vae_sha256\); give another"):
        encode(clips, encoded, EncodeConfig(vae="causal:tiny", audio=MODEL, text=MODEL))
    other = tmp_path / "other"
    pack_characters(other, count=1, frames=17, sizes=[(32, 32)], first=50, progress=nothing)
    with pytest.raises(ValueError, match=r"other settings \(clips, shards\)"):
        encode(other, encoded)


def test_a_damaged_clip_is_named_and_left_out(clips: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(clips, tmp_path / "clips")
    data = ShardSet(tmp_path / "clips")
    span, shard = data.members(1)["mp4"], data.index.shards[data.shard_of[1]].name
    with (tmp_path / "clips" / shard).open("r+b") as file:
        file.seek(span.offset + span.size // 2)
        file.write(b"\x00\xff\x00\xff")
    report = encode(tmp_path / "clips", tmp_path / "out")
    assert report.samples == 5
    assert report.broken.keys() == {data.records[1].key}
    assert "mp4: its bytes are not those that the index names" in report.broken[data.records[1].key]


def test_without_sound_or_pose_there_are_silence_and_zeros(tmp_path: Path) -> None:
    from omnihuman_train.data.pack import PackConfig, pack_clips

    from .toy import write_clip

    (tmp_path / "clips").mkdir()
    write_clip(tmp_path / "clips" / "a.mp4", frames=17)
    config = PackConfig(frames=(17,), area=32 * 48, licence="own")
    pack_clips(tmp_path / "clips", tmp_path / "packed", config, progress=nothing, total=nothing)
    encode(tmp_path / "packed", tmp_path / "out")
    states = ShardSet(tmp_path / "out")
    audio = load_component(MODEL, "audio_extractor")
    silence = audio.align(audio.extract(torch.zeros(1, 10880)), fps=25.0, num_frames=17)[0].half()
    assert load(states.read(0, "audio.safetensors"))["states"].equal(silence)
    assert not load(states.read(0, "pose.safetensors"))["keypoints"].any()
    assert not load(states.read(0, "latents.safetensors"))["mouth_region"].any()
    batch = flow_stream(tmp_path / "out", batch=BatchConfig(batch_size=1))(10)
    assert not any(bool(batch["keep"][name]) for name in ("text", "audio", "pose"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"vae": "causal:huge"}, "preset 'huge' of 'causal' does not exist"),
        ({"vae": "nothing:tiny"}, "unknown video_vae plugin 'nothing'"),
        ({"audio": "log_mel"}, "--audio log_mel: no such model directory; give one, or --audio PLUGIN:PRESET"),
        ({"caption": "medium"}, "--caption must be one of long, short, got 'medium'"),
        ({"precision": "fp8"}, "--precision must be one of bf16, fp32, got 'fp8'"),
    ],
)
def test_components_that_do_not_exist_are_one_line(
    clips: Path, tmp_path: Path, config: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        encode(clips, tmp_path / "out", EncodeConfig(**{**vars(CONFIG), **config}))
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_encoded_is_refused_before_any_work(clips: Path, encoded: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds states, not clips"):
        encode(encoded, tmp_path / "out")
    with pytest.raises(ValueError, match="is the folder of the clips"):
        encode(clips, clips)
    pack_characters(tmp_path / "odd", count=1, frames=12, sizes=[(32, 32)], progress=nothing)
    with pytest.raises(ValueError, match="takes no clips of 12x32x32 .*the next length that fits is 13"):
        encode(tmp_path / "odd", tmp_path / "out")
    with pytest.raises(ValueError, match="--rank must be in"):
        encode(clips, tmp_path / "out", rank=2, world=2)


def test_boxes_enclose_visible_points_alone() -> None:
    points = torch.zeros(2, 3, 3)
    points[0] = torch.tensor([[0.2, 0.4, 1.0], [0.4, 0.5, 0.9], [0.9, 0.9, 0.1]])
    found = box_round([points], 0.5)
    assert found.shape == (2, 1, 4)
    torch.testing.assert_close(found[0, 0], torch.tensor([0.1, 0.35, 0.5, 0.55]))
    assert not found[1].any()


def test_video_batches_are_windows_of_the_decoded_clips(clips: Path) -> None:
    data = ShardSet(clips)
    numbers = {record.key: i for i, record in enumerate(data.records)}
    config = StreamConfig(batch=BatchConfig(batch_size=2), threads=2)
    whole = VideoStream(clips, config, frames=5, seed=1, mouth_weight=3.0)
    parts = [VideoStream(clips, config, frames=5, seed=1, mouth_weight=3.0, rank=rank, world=2) for rank in (0, 1)]
    starts = set()
    for step in range(8):
        batch, halves = whole(step), [part(step) for part in parts]
        assert batch["video"].dtype == torch.uint8
        assert torch.cat([half["video"] for half in halves]).equal(batch["video"])
        assert [key for half in halves for key in half["key"]] == batch["key"]
        for video, weight, key in zip(batch["video"], batch["weight"], batch["key"], strict=True):
            record = data.records[numbers[key]]
            clip = torch.empty(*record.bucket, 3, dtype=torch.uint8)
            media.decode_video(data.read(numbers[key], "mp4"), clip)
            frames = clip.permute(3, 0, 1, 2)
            found = [start for start in range(13) if frames[:, start : start + 5].equal(video)]
            assert found
            starts.update(found)
            assert weight.shape == (1, 5, record.height, record.width)
            assert set(weight.unique().tolist()) == {1.0, 3.0}
    assert len(starts) > 2
    plain = VideoStream(clips, config, frames=None, seed=1)(0)
    assert plain["video"].shape[2] == 17
    assert plain["weight"].eq(1).all()


def test_video_windows_that_do_not_fit_are_refused(clips: Path, tmp_path: Path) -> None:
    config = StreamConfig(batch=BatchConfig(batch_size=2))
    with pytest.raises(ValueError, match="a window of 18 frames, but there are clips of 17"):
        VideoStream(clips, config, frames=18, seed=0)
    with pytest.raises(ValueError, match="holds states, not clips"):
        VideoStream(write_states(tmp_path / "states", [SHORT]), config, frames=1, seed=0)
