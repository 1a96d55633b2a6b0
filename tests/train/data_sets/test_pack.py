"""Packing: frames and sound at their moments, broken clips named, stopped runs that end in the same bytes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save_file

from omnihuman_train.data import clip_files, media
from omnihuman_train.data.build import PARTS, BuildReport
from omnihuman_train.data.characters import make_clip, split_seed
from omnihuman_train.data.check import check_data
from omnihuman_train.data.pack import PackConfig, cut, fit_size, pack_clips
from omnihuman_train.data.pack_characters import pack_characters
from omnihuman_train.data.shard_set import ShardSet
from omnihuman_train.data.shards import INDEX, BrokenSampleError

from .toy import write_clip

CONFIG = PackConfig(frames=(9, 5), area=32 * 48, shard_size=2, licence="own")


def nothing(_: int) -> None:
    pass


def pack(clips: Path, out: Path, config: PackConfig = CONFIG, **options: Any) -> BuildReport:
    return pack_clips(clips, out, config, **{"progress": nothing, "total": nothing, **options})


def characters(out: Path, **options: Any) -> BuildReport:
    values = {"count": 3, "frames": 5, "sizes": [(32, 32), (48, 32)], "shard_size": 2, "progress": nothing}
    return pack_characters(out, **{**values, **options})


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def levels(video: torch.Tensor) -> list[int]:
    """The number that each frame's grey stands for."""
    return (video.float().mean((1, 2, 3)) / 8).round().int().tolist()


@pytest.mark.parametrize(
    ("rate", "start", "fps", "want"),
    [
        (25, 0.0, 25.0, [0, 1, 2, 3, 4]),
        (25, 0.2, 25.0, [5, 6, 7, 8, 9]),
        # At the middle of each frame of 40 ms there is the second of two frames of 20 ms.
        (50, 0.0, 25.0, [1, 3, 5, 7, 9]),
        # One frame of 80 ms is shown in two frames of 40 ms.
        (25, 0.0, 50.0, [0, 0, 1, 1, 2]),
        (30, 0.0, 25.0, [0, 1, 3, 4, 5]),
        (25, 0.88, 25.0, [22, 23, 24, 25, 26]),
        # Far enough in that the file is not decoded from its start.
        (10, 2.0, 10.0, [20, 21, 22, 23, 24]),
    ],
)
def test_frames_are_those_that_a_player_shows(
    tmp_path: Path, rate: int, start: float, fps: float, want: list[int]
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=30, fps=rate)
    assert levels(clip_files.read_video(clip, start=start, frames=5, fps=fps, size=(32, 48))) == want


def test_the_last_frames_are_there_and_no_more(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=30)
    assert levels(clip_files.read_video(clip, start=0, frames=30, fps=25.0, size=(32, 48))) == list(range(30))
    with pytest.raises(BrokenSampleError, match="ends 30 frames after 0 s, 31 are needed"):
        clip_files.read_video(clip, start=0, frames=31, fps=25.0, size=(32, 48))


def test_pictures_are_scaled_to_cover_and_cropped_in_the_middle(tmp_path: Path) -> None:
    import av

    # Left half black, right half white, twice as wide as asked for: a quarter is cut off on each side.
    picture = np.zeros((32, 128, 3), dtype=np.uint8)
    picture[:, 64:] = 255
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = 32, 128, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    video = clip_files.read_video(tmp_path / "clip.mp4", start=0, frames=1, fps=25.0, size=(16, 32))
    assert video.shape == (1, 16, 32, 3)
    assert video[0, :, :14].float().mean() < 8
    assert video[0, :, 18:].float().mean() > 247
    info = clip_files.probe(tmp_path / "clip.mp4")
    # Points of the whole picture: its middle, a quarter in (the new left edge), and one that is cut off.
    points = torch.zeros(1, 133, 3)
    points[0, :3] = torch.tensor([[0.5, 0.5, 1.0], [0.25, 0.0, 0.5], [0.2, 0.5, 1.0]])
    save_file({"keypoints": points}, tmp_path / "clip.pose.safetensors", {"fps": "25.0"})
    found = clip_files.read_pose(tmp_path / "clip.mp4", start=0, frames=1, fps=25.0, info=info, size=(16, 32))
    assert found[0, :3].tolist() == [[0.5, 0.5, 1.0], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("start", [0.0, 0.4, 1.6])
def test_sound_is_at_its_moment(tmp_path: Path, start: float) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=60, beep=1.8)
    waveform = clip_files.read_sound(clip, start=start, frames=20, fps=25.0)
    assert len(waveform) == 12800
    if start < 1:
        assert waveform.abs().max() < 0.05
    else:
        # Within 3 ms of its place: a lossy codec smears.
        loud = (waveform.abs() > 0.3).nonzero()
        assert abs(float(loud[0]) / 16000 - (1.8 - start)) < 0.003


def test_flac_and_png_keep_every_bit_and_mp4_nearly(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    wave = (torch.rand(3200, generator=generator) * 2 - 1).mul(32767).round() / 32767
    assert media.decode_sound(media.encode_sound(wave), samples=3200).equal(wave)
    picture = torch.randint(256, (16, 20, 3), generator=generator).byte()
    assert media.decode_picture(media.encode_picture(picture), height=16, width=20).equal(picture)
    clip = make_clip(split_seed("train", 0), num_frames=9, height=64, width=64)
    video = ((clip.video + 1) * 127.5).round().byte().permute(1, 2, 3, 0).contiguous()
    out = torch.empty_like(video)
    media.decode_video(media.encode_video(video, 25.0, full_colour=True), out)
    error = (out.float() - video.float()).square().mean()
    assert 10 * torch.log10(255**2 / error) > 38


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("video", "mp4 has 5 frames, 6 are needed"),
        ("cut", "mp4 cannot be decoded|mp4 has"),
        ("size", "mp4 is 32 x 48, the manifest says 16 x 16"),
        ("script", "mp4 cannot be decoded"),
        ("sound", "flac has more than"),
        ("short", "flac has 100 samples, the clip 101"),
        ("picture", "png is 16 x 16, the clip 32 x 32"),
        ("jpeg", "png cannot be decoded"),
    ],
)
def test_media_that_do_not_fit_are_broken_samples(member: str, message: str) -> None:
    mp4 = media.encode_video(torch.zeros(5, 32, 48, 3, dtype=torch.uint8), 25.0)
    flac = media.encode_sound(torch.zeros(100))
    png = media.encode_picture(torch.zeros(16, 16, 3).byte())
    frames = torch.empty(5, 32, 48, 3, dtype=torch.uint8)
    decode = {
        "video": lambda: media.decode_video(mp4, torch.empty(6, 32, 48, 3, dtype=torch.uint8)),
        "cut": lambda: media.decode_video(mp4[: len(mp4) // 2], frames),
        "size": lambda: media.decode_video(mp4, torch.empty(5, 16, 16, 3, dtype=torch.uint8)),
        "script": lambda: media.decode_video(b"ffconcat version 1.0\nfile /etc/passwd\n", frames),
        "sound": lambda: media.decode_sound(flac, samples=10),
        "short": lambda: media.decode_sound(flac, samples=101),
        "picture": lambda: media.decode_picture(png, height=32, width=32),
        "jpeg": lambda: media.decode_picture(b"\xff\xd8\xff\xe0 no png", height=32, width=32),
    }[member]
    with pytest.raises(BrokenSampleError, match=message):
        decode()


def test_clips_are_cut_longest_first_and_sizes_keep_their_shape() -> None:
    assert cut(10.0, 25.0, (121, 61)) == [(0.0, 121), (4.84, 121)]
    assert cut(8.0, 25.0, (61, 121)) == [(0.0, 121), (4.84, 61)]
    assert cut(2.0, 25.0, (121, 61)) == []
    assert fit_size(1080, 1920, 480 * 832, 16) == (480, 848)
    assert fit_size(1920, 1080, 480 * 832, 16) == (848, 480)
    assert fit_size(100, 100, 64 * 64, 16) == (64, 64)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    (folder / "sub").mkdir(parents=True)
    write_clip(folder / "a.mp4", frames=20, beep=0.2)
    (folder / "a.json").write_text(json.dumps({"caption": "A grey wall.", "sync_conf": 4.0, "sync_offset": 5}))
    write_clip(folder / "b.mp4", frames=12, beep=0.2)
    (folder / "b.json").write_text(json.dumps({"sync_conf": 1.5, "licence": "CC-BY-4.0", "source": "https://b"}))
    write_clip(folder / "sub" / "c.mkv", frames=10)
    save_file({"keypoints": torch.full((10, 133, 3), 0.5)}, folder / "sub" / "c.pose.safetensors", {"fps": "25"})
    return folder


def test_files_of_one_source_are_samples_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("a", "b", "c"):
        write_clip(folder / f"{name}.mp4", frames=9)
        (folder / f"{name}.json").write_text(json.dumps({"source": "https://example.org/film"}))
    write_clip(folder / "d.mp4", frames=9)
    for size in (1, 8):
        out = tmp_path / f"shards of {size}"
        assert pack(folder, out, PackConfig(frames=(9,), area=32 * 48, shard_size=size, licence="own")).samples == 4
        records = ShardSet(out).records
        assert sorted(record.source for record in records) == ["d.mp4", *["https://example.org/film"] * 3]
        assert len({record.key for record in records}) == 4
        # A clip that names no source has the key that it always had.
        (known,) = [record.key for record in records if record.source == "d.mp4"]
        assert known == hashlib.sha1(b"d.mp4\n0.000000\n0.360000").hexdigest()


def test_notes_decide_what_a_clip_may_train(clips: Path, tmp_path: Path) -> None:
    report = pack(clips, tmp_path / "out")
    data = ShardSet(tmp_path / "out")
    assert (report.samples, report.broken, len(data)) == (4, {}, 4)
    found = {(r.source, r.start): r for r in data.records}
    assert sorted(found) == [("a.mp4", 0.0), ("a.mp4", 0.36), ("https://b", 0.0), ("sub/c.mkv", 0.0)]
    a, b, c = found["a.mp4", 0.0], found["https://b", 0.0], found["sub/c.mkv", 0.0]
    assert (a.has_text, a.has_audio, a.has_pose, a.licence) == (True, True, False, "own")
    assert (b.has_text, b.has_audio, b.has_pose, b.licence) == (False, False, False, "CC-BY-4.0")
    assert (c.has_text, c.has_audio, c.has_pose, c.licence) == (False, False, True, "own")
    members = {record.key: data.members(i).keys() for i, record in enumerate(data.records)}
    assert members[a.key] == {"mp4", "flac", "json"}
    assert members[c.key] == {"mp4", "pose.safetensors", "json"}
    # The voice of a.mp4 lags by five frames, 0.2 s: the click at 0.2 s is at 0 s now.
    number = data.records.index(a)
    wave = media.decode_sound(data.read(number, "flac"), samples=media.sound_samples(9, 25.0))
    assert (wave.abs() > 0.3).nonzero()[0] < 100
    notes = json.loads(data.read(number, "json"))
    assert (notes["captions"], notes["sync_offset"], notes["sync_shift"]) == ({"long": "A grey wall."}, 0.0, 5)
    pose = load(data.read(data.records.index(c), "pose.safetensors"))["keypoints"]
    assert pose.shape == (9, 133, 3)
    assert pose.eq(0.5).all()
    assert check_data(tmp_path / "out", decode=True, progress=nothing).ok
    # Voices of which nothing is known count only where that is said.
    (clips / "b.json").unlink()
    trusting = PackConfig(**{**vars(CONFIG), "assume_sync": True})
    pack(clips, tmp_path / "trusting", trusting)
    assert {r.source: r.has_audio for r in ShardSet(tmp_path / "trusting").records}["b.mp4"]


def test_broken_clips_are_named_and_the_others_are_packed(clips: Path, tmp_path: Path) -> None:
    (clips / "bad.mp4").write_bytes(b"no video at all")
    (clips / "list.mp4").write_text("ffconcat version 1.0\nfile a.mp4\n")
    whole = (clips / "a.mp4").read_bytes()
    (clips / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    write_clip(clips / "short.mp4", frames=3)
    write_clip(clips / "notes.mp4", frames=5)
    (clips / "notes.json").write_text("[1]")
    write_clip(clips / "typo.mp4", frames=5)
    (clips / "typo.json").write_text('{"has_audio": "yes"}')
    write_clip(clips / "pose.mp4", frames=5)
    save_file({"points": torch.zeros(1)}, clips / "pose.pose.safetensors")
    report = pack(clips, tmp_path / "out")
    assert report.samples == 4
    reasons = {name.split(" @")[0]: reason for name, reason in report.broken.items()}
    assert reasons.keys() == {"bad.mp4", "list.mp4", "cut.mp4", "short.mp4", "notes.mp4", "typo.mp4", "pose.mp4"}
    assert "shorter than the shortest sample, 5 frames" in reasons["short.mp4"]
    assert "must hold a JSON object, got list" in reasons["notes.mp4"]
    assert "has_audio must be bool, got 'yes'" in reasons["typo.mp4"]
    assert "needs the tensor 'keypoints' and 'fps'" in reasons["pose.mp4"]
    assert "cannot be decoded" in reasons["bad.mp4"]
    assert "cannot be decoded" in reasons["list.mp4"]
    # It is told again when nothing is left to do.
    assert pack(clips, tmp_path / "out").broken == report.broken


def test_without_any_licence_nothing_is_packed_and_nothing_stays(clips: Path, tmp_path: Path) -> None:
    (clips / "b.json").unlink()
    with pytest.raises(ValueError, match="no sample could be made; the first: .* no licence"):
        pack(clips, tmp_path / "out", PackConfig(**{**vars(CONFIG), "licence": None}))
    assert pack(clips, tmp_path / "out").samples == 4


@pytest.mark.parametrize("stop_after", [1, 2, 5])
def test_a_stopped_pack_goes_on_to_the_same_bytes(tmp_path: Path, stop_after: int) -> None:
    characters(tmp_path / "whole")
    left = stop_after

    def stop(count: int) -> None:
        nonlocal left
        left -= count
        if left <= 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        characters(tmp_path / "resumed", progress=stop)
    assert not (tmp_path / "resumed" / INDEX).exists()
    made = []
    report = characters(tmp_path / "resumed", progress=made.append)
    assert (report.samples, sum(made)) == (6, 6)
    assert content(tmp_path / "whole") == content(tmp_path / "resumed")
    assert not (tmp_path / "resumed" / PARTS).exists()
    # Once more: nothing changes, nothing is made.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "resumed").iterdir()}
    characters(tmp_path / "resumed")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "resumed").iterdir()}


def test_processes_give_the_same_bytes(tmp_path: Path) -> None:
    characters(tmp_path / "one")
    characters(tmp_path / "two", workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_other_options_in_the_same_folder_are_refused(clips: Path, tmp_path: Path) -> None:
    characters(tmp_path / "out")
    with pytest.raises(ValueError, match=r"other settings \(frames\); give another --out, or delete the folder"):
        characters(tmp_path / "out", frames=9)
    pack(clips, tmp_path / "clips-out")
    write_clip(clips / "d.mp4", frames=10)
    with pytest.raises(ValueError, match=r"from other input or with other settings \(clips, shards\)"):
        pack(clips, tmp_path / "clips-out")


def test_a_full_disk_leaves_finished_shards_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from omnihuman_train.data import build

    real, calls = build.write_tar, []

    def full(path: Path, samples: Any) -> Any:
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(path, samples)

    monkeypatch.setattr(build, "write_tar", full)
    with pytest.raises(OSError, match="No space left"):
        characters(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == ["shard-000000.tar"]
    characters(tmp_path / "out")
    characters(tmp_path / "whole")
    assert content(tmp_path / "whole") == content(tmp_path / "out")


def test_characters_keep_their_truth(tmp_path: Path) -> None:
    characters(tmp_path / "out")
    data = ShardSet(tmp_path / "out")
    clip = make_clip(split_seed("train", 0), num_frames=5, height=32, width=32)
    number = next(i for i, record in enumerate(data.records) if record.source == "characters/train/0")
    record, known = data.records[number], load(data.read(number, "pose.safetensors"))
    assert (record.has_audio, record.has_pose, record.has_mouth) == (clip.has_audio, clip.has_pose, True)
    assert known["mouth_open"].equal(clip.mouth_open.float())
    assert json.loads(data.read(number, "json"))["captions"] == {"long": clip.caption}
    wave = media.decode_sound(data.read(number, "flac"), samples=media.sound_samples(5, 25.0))
    assert (wave - clip.waveform).abs().max() < 1e-3
