"""A recording means the same to training, to the audio extractors and to generation: samples, limits and refusals."""

from __future__ import annotations

import wave
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from omnihuman_conditions.audio import media as extractors
from omnihuman_infer.media import sound as generation
from omnihuman_train.data import media as training

RATE = 44_100
TONE = (0.9 * np.sin(2 * np.pi * 440 * np.arange(RATE // 2) / RATE)).astype(np.float64)
CHANNELS = {
    "mono": [1.0],
    "both": [1.0, 1.0],
    "left": [1.0, 0.0],
    "opposite": [1.0, -0.5],
    "surround": [0.2, 0.4, 1.0, 0.0, -0.3, 0.6],
}


def write(path: Path, gains: list[float], rate: int = RATE) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(gains))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.outer(TONE, gains) * 32767).astype("<i2").tobytes())
    return path


def write_mp3(path: Path, **options: str) -> Path:
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libmp3lame", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.tile(TONE, 8)[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = RATE, 0
        for piece in av.AudioResampler("fltp", "mono", RATE, frame_size=1152).resample(frame):
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", CHANNELS)
def test_all_hear_the_average_of_the_channels(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "a.wav", CHANNELS[name])
    generated = generation.read_sound(path, max_seconds=10)
    extracted = extractors.load_waveform(path)
    with av.open(str(path)) as container:
        trained = np.concatenate(list(training.mono(container.decode(audio=0), training.SAMPLE_RATE)))
    assert np.array_equal(generated, extracted.numpy())
    assert np.array_equal(generated, trained.clip(-1, 1))
    # The tone itself, away from where the resampler starts and ends.
    times = np.arange(len(generated)) / 16_000
    want = 0.9 * np.mean(CHANNELS[name]) * np.sin(2 * np.pi * 440 * times)
    np.testing.assert_allclose(generated[400:-400], want[400:-400], atol=2e-3)


def test_no_sample_leaves_full_scale(tmp_path: Path) -> None:
    # A square wave overshoots where it is resampled.
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((np.outer(np.sign(TONE), [1, 1]) * 32767).astype("<i2").tobytes())
    generated = generation.read_sound(tmp_path / "a.wav", max_seconds=10)
    assert np.abs(generated).max() == 1.0
    assert np.array_equal(generated, extractors.load_waveform(tmp_path / "a.wav").numpy())


def test_limits_are_the_same() -> None:
    for name in ("MAX_FILE_BYTES", "MAX_STREAMS", "MIN_SECONDS", "SAMPLE_RATE", "_ESTIMATED", "FORMATS"):
        assert getattr(extractors, name) == getattr(generation, name), name
    for name in ("MIN_SAMPLE_RATE", "MAX_SAMPLE_RATE", "MAX_CHANNELS", "SAMPLE_RATE"):
        assert getattr(extractors, name) == getattr(generation, name) == getattr(training, name), name


def taken(path: Path) -> tuple[bool, bool]:
    """Whether generation and whether the extractors take a file."""
    answers = []
    for read in (lambda: generation.read_sound(path, max_seconds=10), lambda: extractors.load_waveform(path)):
        try:
            read()
            answers.append(True)
        except ValueError:
            answers.append(False)
    return answers[0], answers[1]


@pytest.mark.parametrize(
    ("declared", "missing", "good"),
    [
        # Writers to a pipe.
        (0, 0, True),
        (0xFFFF_FFFF, 0, True),
        (0xFFFF_FFE8, 0, True),
        # One byte of padding may be left out.
        (None, 0, True),
        (None, 1, True),
        (None, 2, False),
    ],
)
def test_the_size_in_a_wav_header(tmp_path: Path, declared: int | None, missing: int, good: bool) -> None:
    path = write(tmp_path / "a.wav", [1.0])
    data = bytearray(path.read_bytes())
    number = len(data) - 8 + missing if declared is None else declared
    data[4:8] = number.to_bytes(4, "little")
    path.write_bytes(data)
    assert taken(path) == (good, good)


def test_an_mp3_is_measured_by_what_it_says_and_not_by_an_estimate(tmp_path: Path) -> None:
    whole = write_mp3(tmp_path / "whole.mp3")
    half = tmp_path / "half.mp3"
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert (taken(whole), taken(half)) == ((True, True), (False, False))
    # Without a count of frames nobody knows how long it was.
    silent = write_mp3(tmp_path / "silent.mp3", write_xing="0", id3v2_version="0")
    half.write_bytes(silent.read_bytes()[: silent.stat().st_size // 2])
    assert (taken(silent), taken(half)) == ((True, True), (True, True))
    # A tag in front, such as one with a picture, hides nothing.
    tag = b"ID3\x04\x00\x00" + bytes([0, 0, 0x27, 0x08]) + bytes(5000)
    half.write_bytes(tag + whole.read_bytes()[: whole.stat().st_size // 2])
    assert taken(half) == (False, False)


@pytest.mark.parametrize(("rate", "channels"), [(400, 1), (16_000, 65)])
def test_an_unusable_track_is_refused(tmp_path: Path, rate: int, channels: int) -> None:
    path = write(tmp_path / "a.wav", [1.0] * channels, rate)
    assert taken(path) == (False, False)
    with av.open(str(path)) as container, pytest.raises(training.BrokenSampleError, match="unusable sound track"):
        list(training.mono(container.decode(audio=0), training.SAMPLE_RATE))


def test_training_refuses_what_is_no_number_and_what_changes_on_the_way() -> None:
    def frame(layout: str, value: float) -> av.AudioFrame:
        channels = 2 if layout == "stereo" else 1
        made = av.AudioFrame.from_ndarray(np.full((channels, 160), value, np.float32), format="fltp", layout=layout)
        made.sample_rate = RATE
        return made

    with pytest.raises(training.BrokenSampleError, match="not numbers"):
        list(training.mono(iter([frame("mono", np.nan)]), 16_000))
    with pytest.raises(training.BrokenSampleError, match="changes its format"):
        list(training.mono(iter([frame("mono", 0), frame("stereo", 0)]), 16_000))


def test_samples_of_24_bits_are_no_sound_of_a_sample(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=16_000, layout="mono")
        stream.format = "s32"
        frame = av.AudioFrame.from_ndarray(np.full((1, 1600), 2**30, np.int32), format="s32", layout="mono")
        frame.sample_rate, frame.pts = 16_000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(training.BrokenSampleError, match="not s16"):
        training.decode_sound(path.read_bytes(), samples=1600)
    flat = torch.full((1600,), 0.5)
    assert training.decode_sound(training.encode_sound(flat), samples=1600).allclose(flat, atol=1e-4)
