"""``omnihuman-train data``: what is broken is named and counted, wrong requests are one line and exit code 2."""

from pathlib import Path

import pytest

from omnihuman_train.cli import main
from omnihuman_train.data.check import check_data
from omnihuman_train.data.shard_set import ShardSet

from .test_pack import nothing
from .toy import LONG, SHORT, TINY_MODEL, key_of, write_clip, write_states


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_states(tmp_path / "data", [SHORT] * 6 + [LONG] * 3)


def flip(path: Path, offset: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 1
    path.write_bytes(raw)


def test_pack_check_cache_and_stats_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips, states = str(tmp_path / "clips"), str(tmp_path / "states")
    assert main(["data", "pack", "--characters", "2", "--frames", "5", "--sizes", "32x32", "--out", clips]) == 0
    assert main(["data", "check", clips, "--decode"]) == 0
    assert main(["data", "cache", clips, "--out", states, "--model", str(TINY_MODEL), "--text", "text_bytes:tiny"]) == 0
    assert main(["data", "check", states, "--decode"]) == 0
    assert main(["data", "stats", states]) == 0
    out = capsys.readouterr().out
    assert "2 samples in 1 shards" in out
    assert "5x32x32" in out
    assert "Apache-2.0" in out


def test_pack_and_stats_count_the_same_as_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips, out = tmp_path / "clips", tmp_path / "out"
    clips.mkdir()
    write_clip(clips / "good.mp4", frames=5)
    # Ten frames make two samples, of which both lack readable notes.
    write_clip(clips / "notes.mp4", frames=10)
    (clips / "notes.json").write_text("{oops")
    (clips / "broken.mp4").write_bytes(b"no video")
    command = ["data", "pack", "--clips", str(clips), "--out", str(out), "--frames", "5", "--area", "32x48"]
    assert main([*command, "--licence", "own"]) == 0
    assert "1 samples in 1 shards, 3 clips or parts of clips skipped" in capsys.readouterr().out
    assert main(["data", "stats", str(out)]) == 0
    assert "3 clips or parts of clips were skipped" in capsys.readouterr().out


def test_stats_are_drawn(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    assert main(["data", "stats", str(data), "--plot", str(tmp_path / "stats.png")]) == 0
    with Image.open(tmp_path / "stats.png") as image:
        assert min(image.size) > 300
        assert len(image.convert("RGB").getcolors(1 << 20) or ()) > 20


def test_a_flipped_byte_names_sample_and_shard(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(data)]) == 0
    span = ShardSet(data).members(5)["latents.safetensors"]
    flip(data / "shard-000001.tar", span.offset + span.size - 1)
    capsys.readouterr()
    assert main(["data", "check", str(data)]) == 2
    out, err = capsys.readouterr()
    assert f"broken sample: {key_of(5)} in shard-000001.tar: latents.safetensors is not what the index says" in out
    assert "shard-000001.tar: sha256 is" in out
    assert err.splitlines()[-1].endswith("1 broken shards, 1 broken samples")


def test_a_flipped_byte_between_members_is_found_too(data: Path) -> None:
    # The last byte of the tar belongs to no sample.
    flip(data / "shard-000002.tar", -1)
    report = check_data(data, decode=True, progress=nothing)
    assert (list(report.broken_shards), report.broken_samples) == (["shard-000002.tar"], {})


def test_cut_missing_and_strange_shards_are_named(data: Path) -> None:
    paths = [data / f"shard-00000{i}.tar" for i in range(3)]
    raw = paths[0].read_bytes()
    paths[0].write_bytes(raw[: len(raw) // 2])
    paths[1].unlink()
    # Another type of member in the place of a plain file: a symbolic link.
    flipped = bytearray(paths[2].read_bytes())
    flipped[156] = ord("2")
    paths[2].write_bytes(flipped)
    report = check_data(data, decode=False, progress=nothing)
    assert "bytes, the index says" in report.broken_shards["shard-000000.tar"]
    assert "the shard is missing" in report.broken_shards["shard-000001.tar"]
    assert "damaged or truncated" in report.broken_shards["shard-000002.tar"]
    # Whole samples of the shard that was cut are not among the broken ones.
    assert 0 < len(report.broken_samples) < 4
    assert report.samples == 9


def test_samples_that_the_manifest_leaves_out_are_counted(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = data / "manifest.jsonl"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(lines[2:]))
    assert main(["data", "check", str(data)]) == 0
    assert "9 samples in 3 shards, 2 left out by the manifest" in capsys.readouterr().out
    assert len(ShardSet(data)) == 7
    manifest.write_text("".join(lines) + lines[0].replace(key_of(0), key_of(77)))
    assert main(["data", "check", str(data)]) == 2
    assert f"sample {key_of(77)} is in no shard" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "nowhere"], "index.jsonl: not found; this is no data set"),
        (["stats", "nowhere"], "not found"),
        (["pack", "--clips", "nowhere", "--out", "x"], "--clips nowhere: no such folder"),
        (["pack", "--characters", "0", "--out", "x"], "must be at least 1"),
        (["pack", "--characters", "1", "--sizes", "64", "--out", "x"], "--sizes: must be HEIGHTxWIDTH, got '64'"),
        (["pack", "--characters", "1", "--sizes", "33x32", "--out", "x"], "sides must be even"),
        (["pack", "--characters", "1", "--frames", "5,9", "--out", "x"], "characters have one length"),
        (["pack", "--characters", "1", "--frames", "five", "--out", "x"], "--frames: must be whole numbers"),
        (["pack", "--characters", "1", "--workers", "0", "--out", "x"], "--workers at least 1"),
        (["pack", "--clips", ".", "--fps", "0", "--out", "x"], "--frames and --fps must be positive"),
        (["pack", "--clips", ".", "--multiple", "7", "--out", "x"], "--multiple must be even"),
        (["cache", "nowhere", "--out", "x"], "--vae: give it, or a --model that has one"),
        (["cache", "nowhere", "--out", "x", "--model", "tiny"], "index.jsonl: not found"),
        (
            ["cache", "nowhere", "--out", "x", "--model", "tiny", "--device", "foo"],
            "--device 'foo' cannot be used here",
        ),
        (["cache", "nowhere", "--out", "x", "--model", "tiny", "--device", "meta"], "for the CPU give --device cpu"),
    ],
)
def test_a_wrong_request_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", *arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("omnihuman-train: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_says_that_the_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("omnihuman_train.data.pack_characters.pack_characters", stopped)
    assert main(["data", "pack", "--characters", "1", "--out", str(tmp_path / "out")]) == 130
    assert "the same command goes on" in capsys.readouterr().err
