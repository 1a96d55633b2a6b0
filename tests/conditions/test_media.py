"""Sound files: what decodes, and one clear line for each that must not."""

import io
import wave
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from omnihuman_conditions.audio.log_mel import LogMelConfig, LogMelExtractor
from omnihuman_conditions.audio.media import load_waveform


def write_wav(path: Path, samples: np.ndarray, rate: int = 16000) -> Path:
    samples = np.atleast_2d(samples)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(samples))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(samples.T, -1, 1) * 32767).astype("<i2").tobytes())
    return path


def sine(seconds: float, rate: int = 16000, hertz: float = 440) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def write_media(path: Path, codec: str | None, *, seconds: float = 1.0, rate: int = 48000, video: bool = False) -> Path:
    with av.open(str(path), "w") as container:
        if video:
            picture = container.add_stream("mpeg4", rate=25)
            picture.width = picture.height = 32
            picture.pix_fmt = "yuv420p"
        if codec is not None:
            stream = container.add_stream(codec, rate=rate)
            stream.layout = "stereo"
            y = sine(seconds, rate).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(np.stack([y, y]), format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = rate, 0
            size = stream.codec_context.frame_size or 1024
            cutter = av.AudioResampler(stream.codec_context.format.name, "stereo", rate, frame_size=size)
            for piece in [*cutter.resample(frame), *cutter.resample(None)]:
                container.mux(stream.encode(piece))
            container.mux(stream.encode(None))
        if video:
            for _ in range(5):
                container.mux(picture.encode(av.VideoFrame(32, 32, "yuv420p")))
            container.mux(picture.encode(None))
    return path


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_wav_of_any_rate_becomes_16_khz(tmp_path: Path, rate: int) -> None:
    got = load_waveform(write_wav(tmp_path / "a.wav", sine(1, rate), rate))
    assert got.dtype == torch.float32
    assert abs(len(got) - 16000) <= 16
    middle = slice(2000, 14000)
    np.testing.assert_allclose(got[middle].numpy(), sine(1)[middle], atol=0.01)


def test_channels_are_averaged_without_clipping(tmp_path: Path) -> None:
    left = np.full(16000, 0.9)
    same = load_waveform(write_wav(tmp_path / "same.wav", np.stack([left, left])))
    half = load_waveform(write_wav(tmp_path / "half.wav", np.stack([left, 0 * left])))
    assert same[8000].item() == pytest.approx(0.9, abs=1e-3)
    assert half[8000].item() == pytest.approx(0.45, abs=1e-3)


def test_a_click_stays_where_it_is_through_resampling(tmp_path: Path) -> None:
    samples = np.zeros(48000)
    samples[24000] = 1.0
    got = load_waveform(write_wav(tmp_path / "a.wav", samples, 48000))
    assert abs(int(got.abs().argmax()) - 8000) <= 1


@pytest.mark.parametrize(
    ("name", "codec", "video"),
    [
        ("a.mp3", "mp3", False),
        ("a.flac", "flac", False),
        ("a.ogg", "libopus", False),
        ("a.m4a", "aac", False),
        ("a.mp4", "aac", True),
        ("a.mkv", "aac", True),
        ("a.webm", "libopus", False),
        ("a.aiff", "pcm_s16be", False),
    ],
)
def test_common_formats(tmp_path: Path, name: str, codec: str, video: bool) -> None:
    got = load_waveform(write_media(tmp_path / name, codec, video=video))
    assert abs(len(got) - 16000) < 800
    spectrum = np.abs(np.fft.rfft(got[4000:12000].numpy()))
    assert np.argmax(spectrum) * 2 == pytest.approx(440, abs=2)


def test_file_object_and_extractor_method(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", sine(0.5))
    from_bytes = load_waveform(io.BytesIO(path.read_bytes()))
    assert torch.equal(from_bytes, load_waveform(str(path)))
    assert torch.equal(from_bytes, LogMelExtractor(LogMelConfig.tiny()).load(path))


def test_silence_is_accepted(tmp_path: Path) -> None:
    assert load_waveform(write_wav(tmp_path / "a.wav", np.zeros(16000))).abs().max() == 0


def refused(path: object, match: str, **limits: float) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        load_waveform(path, **limits)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message


def test_missing_folder_and_empty(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    refused(tmp_path / "none.wav", "not found")
    refused(tmp_path, "not found")
    refused(tmp_path / "empty.wav", "is empty")
    refused(tmp_path / ("x" * 300), "cannot be read")


def test_unreadable(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", sine(1))
    path.chmod(0)
    try:
        path.read_bytes()
    except PermissionError:
        refused(path, "cannot be read")
    else:
        pytest.skip("this user may read every file")


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.m4a", "a.webm", "a.aiff"])
def test_truncated(tmp_path: Path, name: str) -> None:
    codec = {"a.flac": "flac", "a.m4a": "aac", "a.webm": "libopus", "a.aiff": "pcm_s16be"}.get(name)
    path = tmp_path / name
    if codec is None:
        write_wav(path, sine(2))
    else:
        write_media(path, codec, seconds=2)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    refused(path, "truncated|cannot? be decoded|can be decoded")


def test_wav_header_alone(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", np.zeros(0))
    refused(path, "too short|can be decoded")


def test_disguised(tmp_path: Path) -> None:
    picture = tmp_path / "picture.wav"
    Image.new("RGB", (16, 16)).save(picture, format="PNG")
    junk = tmp_path / "junk.mp3"
    junk.write_bytes(np.random.default_rng(0).bytes(4000))
    for path in (picture, junk):
        refused(path, "not a sound or video file")


def test_scripts_that_name_other_files_are_not_opened(tmp_path: Path) -> None:
    write_media(tmp_path / "a.ts", "aac")
    write_wav(tmp_path / "a.wav", sine(1))
    concat = tmp_path / "script.wav"
    concat.write_text("ffconcat version 1.0\nfile a.wav\n")
    playlist = tmp_path / "list.m3u8"
    playlist.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1,\na.ts\n#EXT-X-ENDLIST\n")
    for path in (concat, playlist):
        refused(path, "not a sound or video file")


def test_no_sound_track(tmp_path: Path) -> None:
    refused(write_media(tmp_path / "v.mp4", None, video=True), "no sound track")


def test_ten_milliseconds(tmp_path: Path) -> None:
    refused(write_wav(tmp_path / "a.wav", np.zeros(160)), "10 ms, at least 40 ms")


def test_too_long_by_header_and_by_content(tmp_path: Path) -> None:
    hour = tmp_path / "hour.wav"
    with wave.open(str(hour), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(2000)
        file.writeframes(bytes(3600 * 2000))
    refused(hour, "longer than 600 s")
    # A streamed WAV does not know its length, so the samples themselves are counted.
    data = bytearray(write_wav(tmp_path / "b.wav", sine(3)).read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    (tmp_path / "b.wav").write_bytes(data)
    refused(tmp_path / "b.wav", "longer than 2 s", max_seconds=2)


def test_too_many_streams(tmp_path: Path) -> None:
    path = tmp_path / "many.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("pcm_s16le", rate=8000, layout="mono") for _ in range(17)]
        for stream in streams:
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 8000, 0
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    refused(path, "17 streams, at most 16")


def test_infinite_samples(tmp_path: Path) -> None:
    path = tmp_path / "float.wav"
    samples = np.full(8000, np.nan, dtype="<f4")
    body = samples.tobytes()
    header = b"WAVEfmt " + (16).to_bytes(4, "little") + (3).to_bytes(2, "little") + (1).to_bytes(2, "little")
    header += (16000).to_bytes(4, "little") + (64000).to_bytes(4, "little") + (4).to_bytes(2, "little")
    header += (32).to_bytes(2, "little") + b"data" + len(body).to_bytes(4, "little") + body
    path.write_bytes(b"RIFF" + len(header).to_bytes(4, "little") + header)
    refused(path, "NaN or infinite")
