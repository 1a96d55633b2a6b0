import os
from pathlib import Path

import av
import numpy as np
import pytest

from omnihuman_infer.media.video import VideoWriter

from .files import transcode, voice, write_wav


def frames(count: int, seed: int = 0) -> np.ndarray:
    """Smooth moving colours, ``(count, 48, 64, 3)``."""
    rows, columns, times = np.mgrid[0:48, 0:64, 0:count].astype(np.float64)
    waves = [128 + 100 * np.sin((rows + k * columns) / 20 + times / 5 + seed) for k in (0, 1, 2)]
    return np.stack(waves, axis=-1).transpose(2, 0, 1, 3).astype(np.uint8)


def write(path: Path, sound: Path | None = None, count: int = 50, seed: int = 0) -> Path:
    with VideoWriter(path, width=64, height=48, fps=25.0, sound=sound, model="test 1") as writer:
        for piece in np.array_split(frames(count, seed), 7):
            writer.write(piece)
    return path


def test_file_is_h264_and_aac_at_25_fps(tmp_path: Path) -> None:
    sound = write_wav(tmp_path / "voice.wav", voice(2.0))
    with av.open(str(write(tmp_path / "clip.mp4", sound))) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (video.average_rate, video.frames, video.width, video.height) == (25, 50, 64, 48)
        assert video.codec_context.pix_fmt == "yuv420p"
        assert float(video.duration * video.time_base) == 2.0
        assert float(audio.duration * audio.time_base) == pytest.approx(2.0, abs=0.07)
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video)])
    # High quality, and the right colours: a swapped matrix or channel order would be far off.
    assert np.abs(decoded.astype(float) - frames(50)).mean() < 4


@pytest.mark.parametrize(
    ("kind", "codec", "rate", "layout"),
    [("mp3", "libmp3lame", 44_100, "mono"), ("flac", "flac", 96_000, "stereo"), ("wav", "pcm_s16le", 7_000, "mono")],
)
def test_sound_is_the_input_sound(tmp_path: Path, kind: str, codec: str, rate: int, layout: str) -> None:
    wav = write_wav(tmp_path / "voice.wav", voice(2.0))
    source = transcode(wav, tmp_path / f"source.{kind}", codec, rate, layout)
    clip = write(tmp_path / "clip.mp4", source)
    with av.open(str(clip)) as container:
        stream = container.streams.audio[0]
        assert stream.rate == (rate if rate > 8_000 else 48_000)
        assert stream.layout.name == layout
        resampler = av.AudioResampler(format="flt", layout="mono", rate=16_000)
        pieces = [r.to_ndarray().ravel() for f in container.decode(stream) for r in resampler.resample(f)]
    heard = np.concatenate(pieces)[:32_000]
    said = voice(2.0)[: len(heard)]
    # Codecs delay by up to a few thousand samples: take the best shift.
    spectrum = np.fft.rfft(heard, 2**17) * np.conj(np.fft.rfft(said, 2**17))
    match = np.fft.irfft(spectrum).max() / (np.linalg.norm(heard) * np.linalg.norm(said))
    assert match > 0.9


def test_sound_ends_with_the_video(tmp_path: Path) -> None:
    sound = write_wav(tmp_path / "voice.wav", voice(10.0))
    with av.open(str(write(tmp_path / "clip.mp4", sound, count=25))) as container:
        stream = container.streams.audio[0]
        assert 1.0 <= float(stream.duration * stream.time_base) <= 1.0 + 0.1


def test_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    sound = write_wav(tmp_path / "voice.wav", voice(2.0))
    one, two = write(tmp_path / "a.mp4", sound), write(tmp_path / "b.mp4", sound)
    assert one.read_bytes() == two.read_bytes()
    assert write(tmp_path / "c.mp4", sound, seed=1).read_bytes() != one.read_bytes()
    # What an encoder leaves to chance shows once in a hundred times.
    pictures, files = frames(50), set()
    for _ in range(150):
        with VideoWriter(tmp_path / "d.mp4", width=64, height=48, fps=25.0) as writer:
            writer.write(pictures)
        files.add((tmp_path / "d.mp4").read_bytes())
    assert len(files) == 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "clip.mp4"
    target.write_bytes(b"precious")

    def fail() -> None:
        with VideoWriter(target, width=64, height=48, fps=25.0) as writer:
            writer.write(frames(5))
            raise error

    with pytest.raises(error):
        fail()
    assert target.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [target]


def test_failure_to_open_the_sound_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"nonsense")
    with (
        pytest.raises(ValueError, match="audio"),
        VideoWriter(tmp_path / "clip.mp4", width=64, height=48, fps=25.0, sound=tmp_path / "bad.wav"),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["bad.wav"]


def test_file_says_that_it_is_generated(tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mp4")
    with av.open(str(clip)) as container:
        assert "trainedAlgorithmicMedia" in container.metadata["comment"]
    # Walk the top-level boxes (ISO 14496-12): the last one is the XMP box and ends with the file.
    data, position, boxes = clip.read_bytes(), 0, []
    while position < len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        boxes.append((data[position + 4 : position + 8], data[position + 8 : position + size]))
        position += size
    assert position == len(data)
    kind, content = boxes[-1]
    assert kind == b"uuid"
    assert content[:16].hex() == "be7acfcb97a942e89c71999491e3afac"
    assert b"digitalsourcetype/trainedAlgorithmicMedia" in content
    assert b"test 1" in content
    # The index comes first, so that a browser can start before it has the whole file.
    kinds = [kind for kind, _ in boxes]
    assert kinds.index(b"moov") < kinds.index(b"mdat")


def test_a_name_may_be_as_long_as_the_file_system_has_it(tmp_path: Path) -> None:
    clip = write(tmp_path / ("x" * 251 + ".mp4"))
    assert list(tmp_path.iterdir()) == [clip]


def test_new_file_has_ordinary_rights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # To ask for the mask is to change it, and other threads make files meanwhile.
    monkeypatch.setattr(os, "umask", None)
    clip = write(tmp_path / "new" / "clip.mp4")
    (tmp_path / "plain").touch()
    assert clip.stat().st_mode == (tmp_path / "plain").stat().st_mode
