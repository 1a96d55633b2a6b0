import dataclasses
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from omnihuman_infer import GenerateRequest, ModelError, RequestError
from omnihuman_infer.request import parse_region

from .files import voice, write_picture, write_wav


@pytest.fixture
def good(tmp_path: Path) -> GenerateRequest:
    picture = write_picture(tmp_path / "face.png")
    sound = write_wav(tmp_path / "voice.wav", voice(0.5))
    return GenerateRequest(image=picture, audio=sound, out=tmp_path / "clip.mp4")


def test_good_request_passes_and_writes_nothing(good: GenerateRequest, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    good.validate()
    assert sorted(tmp_path.iterdir()) == before


def test_strings_become_paths() -> None:
    request = GenerateRequest(image="a.png", audio="b.wav", out="c.mp4")
    assert (request.image, request.audio, request.out) == (Path("a.png"), Path("b.wav"), Path("c.mp4"))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"num_steps": -3}, "num_steps"),
        ({"num_steps": 0}, "num_steps"),
        ({"num_steps": 2.5}, "num_steps"),
        ({"num_steps": 10**9}, "num_steps"),
        ({"num_steps": True}, "num_steps"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"guidance_scale": math.nan}, "guidance_scale"),
        ({"guidance_scale": -0.1}, "guidance_scale"),
        ({"guidance_scale": math.inf}, "guidance_scale"),
        ({"guidance_schedule": "sine"}, "guidance_schedule"),
        ({"negative_audio": "loud"}, "negative_audio"),
        ({"speaker_region": (0.5, 0.0, 0.5, 1.0)}, "speaker_region"),
        ({"speaker_region": (0.6, 0.0, 0.5, 1.0)}, "speaker_region"),
        ({"speaker_region": (0.0, 0.0, 64.0, 64.0)}, "speaker_region"),
        ({"speaker_region": (0.0, math.nan, 1.0, 1.0)}, "speaker_region"),
        ({"speaker_region": (0.0, 1.0)}, "speaker_region"),
        ({"device": "gpu"}, "device"),
        ({"device": "cuda:x"}, "device"),
        ({"prompt": "x" * 5000}, "prompt"),
        ({"seconds": 0.0}, "seconds"),
        ({"seconds": 601.0}, "seconds"),
        ({"max_seconds": -1.0}, "max_seconds"),
        ({"segment_frames": 0}, "segment_frames"),
        ({"audio": None}, "audio"),
        ({"image": "nowhere.png"}, "image"),
        ({"audio": "nowhere.wav"}, "audio"),
        ({"pose": "nowhere.json"}, "pose"),
        ({"out": "clip.avi"}, "out"),
        ({"out": None}, "out"),
        ({"max_seconds": None}, "max_seconds"),
        ({"image": "x" * 300 + ".png"}, "image"),
        ({"out": "x" * 300 + ".mp4"}, "out"),
        ({"out": "a\0b.mp4"}, "out"),
        # As a program may hand them on that got them from elsewhere.
        ({"image": 5}, "image"),
        ({"audio": b"voice.wav"}, "audio"),
        ({"out": ["clip.mp4"]}, "out"),
        ({"model": 5}, "model"),
        ({"captioner": 5}, "captioner"),
        ({"captioner_key": 5}, "captioner_key"),
        ({"prompt": 5}, "prompt"),
        ({"sampler": []}, "sampler"),
        ({"seed": None}, "seed"),
        ({"allow_silence": "no"}, "allow_silence"),
        ({"speaker_region": 5}, "speaker_region"),
        ({"speaker_region": "0001"}, "speaker_region"),
    ],
)
def test_wrong_field_is_named_in_one_line(good: GenerateRequest, change: dict[str, object], names: str) -> None:
    with pytest.raises(RequestError, match=rf"^{names}: ") as caught:
        dataclasses.replace(good, **change).validate()
    assert "\n" not in str(caught.value)


def test_out_counts_only_where_a_file_is_written(good: GenerateRequest) -> None:
    unwritable = dataclasses.replace(good, out="/proc/clip.mp4")
    unwritable.validate(writes=False)
    with pytest.raises(RequestError, match=r"^out: cannot write"):
        unwritable.validate()


def test_a_request_survives_a_process_border(good: GenerateRequest) -> None:
    again = pickle.loads(pickle.dumps(good))
    assert again == good
    assert hash(again) == hash(good)
    assert dataclasses.replace(again, image="b.png").image == Path("b.png")
    assert "image=PosixPath" in repr(again)
    for error in (RequestError("image: no"), ModelError("model: no")):
        other = pickle.loads(pickle.dumps(error))
        assert (type(other), str(other)) == (type(error), str(error))


def test_numbers_of_other_libraries_are_numbers(good: GenerateRequest) -> None:
    given = {"seed": np.int64(3), "num_steps": np.int32(4), "guidance_scale": np.float32(2.5)}
    dataclasses.replace(good, device=torch.device("cpu"), **given).validate()


def test_region_needs_a_voice(good: GenerateRequest) -> None:
    with pytest.raises(RequestError, match=r"^speaker_region: needs a voice"):
        dataclasses.replace(good, audio=None, seconds=1.0, speaker_region=(0.0, 0.0, 0.5, 1.0)).validate()


def test_empty_file_and_folder_as_file(good: GenerateRequest, tmp_path: Path) -> None:
    empty = tmp_path / "empty.png"
    empty.touch()
    with pytest.raises(RequestError, match=r"^image: .* is empty"):
        dataclasses.replace(good, image=empty).validate()
    with pytest.raises(RequestError, match=r"^audio: .* not a regular file"):
        dataclasses.replace(good, audio=tmp_path).validate()


def test_output_that_cannot_be_written(good: GenerateRequest, tmp_path: Path) -> None:
    folder = tmp_path / "folder.mp4"
    folder.mkdir()
    with pytest.raises(RequestError, match=r"^out: .* is a folder"):
        dataclasses.replace(good, out=folder).validate()
    with pytest.raises(RequestError, match=r"^out: .* is not a folder"):
        dataclasses.replace(good, out=good.image / "clip.mp4").validate()
    with pytest.raises(RequestError, match=r"^out: cannot write into"):
        dataclasses.replace(good, out=Path("/proc/clip.mp4")).validate()
    # A folder that does not exist yet is made when the video is written.
    dataclasses.replace(good, out=tmp_path / "new" / "clip.mp4").validate()
    assert not (tmp_path / "new").exists()


def test_output_is_not_an_input(good: GenerateRequest, tmp_path: Path) -> None:
    sound = write_wav(tmp_path / "voice.mp4", voice(0.5))
    link = tmp_path / "link.mp4"
    os.link(sound, link)
    with pytest.raises(RequestError, match=r"^out: is the same file as audio"):
        dataclasses.replace(good, audio=sound, out=link).validate()


def test_region_text() -> None:
    assert parse_region("0,0.25,.5,1") == (0.0, 0.25, 0.5, 1.0)
    for text in ("", "1,2,3", "0,0,a,1", "0,0,1,1,1"):
        with pytest.raises(RequestError, match=r"^speaker_region: "):
            parse_region(text)


def test_checking_a_request_imports_neither_torch_nor_media_libraries() -> None:
    code = (
        "import sys; from omnihuman_infer import GenerateRequest; import omnihuman_infer.cli, omnihuman_infer.presets;"
        "import omnihuman_infer.inputs;"
        "print([m for m in ('torch', 'av', 'rich', 'omnihuman_core') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
