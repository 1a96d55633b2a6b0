from pathlib import Path

import numpy as np
import pytest

from omnihuman_core import contracts
from omnihuman_infer.media.sound import SAMPLE_RATE, read_sound, sound_frames, track_format
from omnihuman_infer.request import RequestError

from .files import transcode, voice, write_picture, write_silent_film, write_wav


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    return write_wav(tmp_path / "voice.wav", voice(2.0))


def test_samples_are_those_of_the_file(tmp_path: Path) -> None:
    samples = voice(0.5)
    got = read_sound(write_wav(tmp_path / "a.wav", samples), max_seconds=10)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, samples, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "codec", "rate", "layout"),
    [("flac", "flac", 44_100, "stereo"), ("m4a", "aac", 48_000, "stereo"), ("mp3", "libmp3lame", 22_050, "mono")],
)
def test_other_formats_and_rates(wav: Path, tmp_path: Path, kind: str, codec: str, rate: int, layout: str) -> None:
    path = transcode(wav, tmp_path / f"a.{kind}", codec, rate, layout)
    got = read_sound(path, max_seconds=10)
    assert abs(len(got) / SAMPLE_RATE - 2.0) < 0.15
    assert 0.2 < np.abs(got).max() < 0.4
    assert track_format(path) == (rate, layout)


@pytest.mark.parametrize(("kind", "codec"), [("wav", None), ("flac", "flac"), ("mp3", "libmp3lame"), ("m4a", "aac")])
def test_truncated(wav: Path, tmp_path: Path, kind: str, codec: str | None) -> None:
    whole = wav if codec is None else transcode(wav, tmp_path / f"whole.{kind}", codec)
    cut = tmp_path / f"cut.{kind}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(RequestError, match=r"^audio: .*(truncated|damaged)") as caught:
        read_sound(cut, max_seconds=10)
    assert "\n" not in str(caught.value)


def test_no_sound_track_and_no_sound_file(tmp_path: Path, wav: Path) -> None:
    with pytest.raises(RequestError, match=r"^audio: .* has no sound track"):
        read_sound(write_silent_film(tmp_path / "film.mp4"), max_seconds=10)
    picture = write_picture(tmp_path / "picture.png").rename(tmp_path / "picture.wav")
    with pytest.raises(RequestError, match=r"^audio: .* is not a sound file"):
        read_sound(picture, max_seconds=10)
    # FFmpeg would follow this script to the file it names.
    script = tmp_path / "script.wav"
    script.write_text(f"ffconcat version 1.0\nfile {wav.name}\n")
    with pytest.raises(RequestError, match=r"^audio: .* is not a sound file"):
        read_sound(script, max_seconds=10)
    playlist = tmp_path / "list.wav"
    playlist.write_text(f"#EXTM3U\n#EXTINF:2,\n{wav.name}\n#EXT-X-ENDLIST\n")
    with pytest.raises(RequestError, match=r"^audio: .* is not a sound file"):
        read_sound(playlist, max_seconds=10)


def test_lengths(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"^audio: .* lasts 10 ms"):
        read_sound(write_wav(tmp_path / "short.wav", voice(0.01)), max_seconds=10)
    with pytest.raises(RequestError, match=r"^audio: .* limit is 600 s; cut it or raise --max-seconds"):
        read_sound(write_wav(tmp_path / "hour.wav", np.zeros(3600 * 1000), rate=1000), max_seconds=600)
    two = write_wav(tmp_path / "two.wav", voice(2.0))
    assert len(read_sound(two, max_seconds=2.0)) == 2 * SAMPLE_RATE
    assert len(read_sound(two, max_seconds=2.0, keep_seconds=0.5)) == SAMPLE_RATE // 2


def test_silence_is_refused_unless_allowed(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "silent.wav", np.zeros(SAMPLE_RATE))
    with pytest.raises(RequestError, match=r"^audio: .* is silent .* --allow-silence"):
        read_sound(path, max_seconds=10)
    assert not read_sound(path, max_seconds=10, allow_silence=True).any()


def test_frames_for_the_encoder_count_from_zero(wav: Path) -> None:
    frames = list(sound_frames(wav, rate=48_000, layout="stereo", frame_size=1024))
    assert [frame.pts for frame in frames] == [1024 * i for i in range(len(frames))]
    assert all(frame.samples == 1024 for frame in frames[:-1])
    assert sum(frame.samples for frame in frames) == pytest.approx(96_000, abs=64)


def test_sound_is_read_at_the_rate_of_the_contract() -> None:
    """The reader imports no torch, so it cannot import the contract."""
    assert SAMPLE_RATE == contracts.SAMPLE_RATE
