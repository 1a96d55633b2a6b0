import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from omnihuman_infer import OmniHumanPipeline, RequestError
from omnihuman_infer.cli import main
from omnihuman_infer.media.video import VideoWriter

from .files import voice, write_picture, write_silent_film, write_wav
from .models import save_toy

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    return {
        "image": write_picture(tmp_path / "face.png"),
        "audio": write_wav(tmp_path / "voice.wav", voice(0.6)),
        "out": tmp_path / "clip.mp4",
    }


@pytest.fixture
def run(inputs: dict[str, Path], toy_dir: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``generate`` with good arguments and the changes given; returns exit code and standard error."""

    def run(*more: str, **changes: object) -> tuple[int, str]:
        arguments = {**inputs, "model": toy_dir, "device": "cpu", **changes}
        flags = [f"--{name}={value}" for name, value in arguments.items() if value is not None]
        code = main(["generate", *flags, *more])
        return code, capsys.readouterr().err

    return run


def test_generates(run: Run, inputs: dict[str, Path], toy_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--prompt", "a hum", "--seed", "3", "--num-steps", "1", "--guidance-scale", "2"]
    flags += ["--guidance-schedule", "linear", "--speaker-region", "0,0,0.5,1"]
    code = main(
        ["generate", "--image", str(inputs["image"]), "--audio", str(inputs["audio"]), "--out", str(inputs["out"])]
        + ["--model", str(toy_dir), *flags]
    )
    out = capsys.readouterr().out
    assert code == 0
    assert out.startswith(f"{inputs['out']}  48x48, 15 frames, 0.60 s of video in ")
    with av.open(str(inputs["out"])) as container:
        assert container.streams.video[0].frames == 15


def test_how_a_model_is_loaded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def load(model: str, **options: object) -> OmniHumanPipeline:
        asked.update(options)
        raise RequestError("stop: here")

    monkeypatch.setattr(OmniHumanPipeline, "from_pretrained", load)
    assert run("--dtype=bfloat16", "--ops=triton", "--attention=sdpa_math")[0] == 2
    wanted = {"dtype": torch.bfloat16, "ops": "triton", "attention": "sdpa_math"}
    assert {name: asked[name] for name in wanted} == wanted
    monkeypatch.undo()
    code, error = run("--ops=fast")
    assert code == 2
    assert error.startswith("omnihuman-infer: error: ops: ")


def test_quiet_prints_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code = run("--quiet", "--num-steps=1")
    assert (code, capsys.readouterr().out) == ((0, ""), "")


@pytest.mark.filterwarnings("default")
def test_cut_prompt_is_noted(run: Run) -> None:
    code, error = run("--num-steps=1", prompt="one two three four five six seven eight")
    assert code == 0
    assert "note: text has 8 words, only the first 6 are used\n" in error


def bad_files(folder: Path) -> dict[str, dict[str, object]]:
    """Wrong arguments by what they should be answered with."""
    picture, sound = write_picture(folder / "p.png").read_bytes(), write_wav(folder / "s.wav", voice(1.0)).read_bytes()

    def file(name: str, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    def huge(name: str, size: int) -> Path:
        # Sparse: takes no room.
        with (folder / name).open("wb") as opened:
            opened.truncate(size)
        return folder / name

    return {
        "image: .* MiB, the limit is 128": {"image": huge("huge.png", 200 * 2**20)},
        "audio: .* is larger than 4 GiB": {"audio": huge("huge.wav", 5 * 2**30)},
        "pose: .* is larger than 256 MiB": {"pose": huge("huge.json", 300 * 2**20)},
        "image: .* does not exist": {"image": folder / "nowhere.png"},
        "image: .* is empty": {"image": file("empty.png", b"")},
        "image: .* damaged or truncated": {"image": file("cut.png", picture[:-200])},
        "image: .* is not a PNG": {"image": file("sound.png", sound)},
        "image: .* not a regular file": {"image": folder},
        "audio: .* does not exist": {"audio": folder / "nowhere.wav"},
        "audio: .* is empty": {"audio": file("empty.wav", b"")},
        "audio: .* is truncated": {"audio": file("cut.wav", sound[:-2000])},
        "audio: .* is not a sound file": {"audio": file("picture.wav", picture)},
        "audio: .* no sound track": {"audio": write_silent_film(folder / "film.mp4")},
        "audio: .* is silent": {"audio": write_wav(folder / "silent.wav", np.zeros(16_000))},
        "audio: .* lasts 10 ms": {"audio": write_wav(folder / "short.wav", voice(0.01))},
        "audio: .* lasts 3600 s": {"audio": write_wav(folder / "hour.wav", np.zeros(3_600_000), rate=1000)},
        "audio: nothing says how long": {"audio": None},
        "image: nothing says what": {"image": None},
        "aspect: the video has that of its picture": {"aspect": "3:5"},
        "aspect: must be W:H": {"image": None, "prompt": "a hum", "aspect": "3:0"},
        "aspect: this model makes 0.5 to 2,": {"image": None, "prompt": "a hum", "aspect": "3"},
        "pose: .* does not exist": {"pose": folder / "nowhere.json"},
        "pose: ": {"pose": file("noise.json", b"\x00\x01 not a pose file")},
        "model: 'huge' is unknown": {"model": "huge"},
        "num_steps: must be": {"num-steps": -3},
        "seed: must be": {"seed": -1},
        "guidance_scale: must be": {"guidance-scale": "nan"},
        "argument --seed": {"seed": "lucky"},
        "argument --guidance-schedule": {"guidance-schedule": "sine"},
        "speaker_region: must be four": {"speaker-region": "left"},
        "speaker_region: x0 must": {"speaker-region": "0.5,0,0.1,1"},
        "sampler: must be one of": {"sampler": "magic"},
        "device: must be": {"device": "abacus"},
        "out: must end in .mp4": {"out": folder / "clip.avi"},
        "out: cannot write": {"out": "/proc/clip.mp4"},
        "out: .* is not a folder": {"out": folder / "p.png" / "clip.mp4"},
    }


def test_bad_input_is_one_line_and_code_2(run: Run, inputs: dict[str, Path], tmp_path: Path) -> None:
    inputs["out"].write_bytes(b"precious")
    folder = tmp_path / "bad"
    folder.mkdir()
    for expected, changes in bad_files(folder).items():
        before = sorted(tmp_path.rglob("*"))
        code, error = run(**changes)
        assert code == 2, expected
        assert error.count("\n") == 1, error
        assert re.match(rf"omnihuman-infer: error: {expected}", error), (expected, error)
        assert inputs["out"].read_bytes() == b"precious"
        assert sorted(tmp_path.rglob("*")) == before, expected


def test_a_full_disk_is_one_line(run: Run, inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    inputs["out"].write_bytes(b"precious")
    before = sorted(inputs["out"].parent.iterdir())

    def full(writer: VideoWriter, frames: np.ndarray) -> None:
        raise OSError(code, os.strerror(code), str(writer.path))

    monkeypatch.setattr(VideoWriter, "write", full)
    code = errno.ENOSPC
    assert run("--quiet") == (
        2,
        "omnihuman-infer: error: No space left on device, nothing was written; make room for it\n",
    )
    assert inputs["out"].read_bytes() == b"precious"
    assert sorted(inputs["out"].parent.iterdir()) == before
    # What is no news to a user is a fault, and tells where.
    code = errno.EBADF
    with pytest.raises(OSError, match="Bad file"):
        run("--quiet")


def test_pillow_does_not_speak_into_the_answer(tmp_path: Path) -> None:
    # A bit for each pixel.
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    command = [sys.executable, "-m", "omnihuman_infer.cli", "generate", "--image", "large.png", "--seconds", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch("omnihuman-infer: error: image: .* has 10000x10000 pixels, .*\n", done.stderr)


def test_missing_and_unknown_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["generate"], ["generate", "--image", "a.png", "--wings", "2"], ["fly"]):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("omnihuman-infer: error: ")
        assert error.count("\n") == 1


def test_unknown_flags_lead_to_the_help_of_their_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words, command in (
        (["generate", "--promt", "hi"], "omnihuman-infer generate --help"),
        (["generate", "--seed", "lucky"], "omnihuman-infer generate --help"),
        (["fly"], "omnihuman-infer --help"),
    ):
        assert main(words) == 2
        assert capsys.readouterr().err.endswith(f"; see {command}\n")


def test_help_names_the_samplers() -> None:
    from omnihuman_core.flow import SAMPLERS
    from omnihuman_infer.cli import _parser

    (commands,) = (action for action in _parser()._actions if action.dest == "command")
    (sampler,) = (action for action in commands.choices["generate"]._actions if action.dest == "sampler")
    assert sorted(re.findall(r"\w+", sampler.help.partition(" (")[0].replace(" or ", " "))) == sorted(SAMPLERS)


def test_a_reader_that_stops_reading_is_no_error(toy_dir: Path) -> None:
    command = [sys.executable, "-m", "omnihuman_infer.cli", "doctor", str(toy_dir)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_info(toy_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(toy_dir)]) == 0
    assert "mmdit" in capsys.readouterr().out
    assert main(["info", "huge"]) == 2


def test_wrong_request_is_answered_without_torch(tmp_path: Path, inputs: dict[str, Path]) -> None:
    code = (
        "import sys; from omnihuman_infer.cli import main; code = main(sys.argv[1:]);assert 'torch' not in sys.modules"
    )
    arguments = ["generate", f"--image={inputs['image']}", f"--audio={inputs['audio']}", f"--out={tmp_path / 'a.mp4'}"]
    for more in (["--model=huge"], ["--num-steps=-1"], [f"--audio={inputs['image']}"]):
        done = subprocess.run([sys.executable, "-c", code + "; sys.exit(code)", *arguments, *more], capture_output=True)
        assert (done.returncode, done.stderr.count(b"\n")) == (2, 1), done.stderr


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_interruption_leaves_nothing(
    tmp_path: Path, inputs: dict[str, Path], number: signal.Signals, expected: int
) -> None:
    model = save_toy(tmp_path / "model")
    inputs["out"].write_bytes(b"precious")
    # Long enough not to be done before the signal comes.
    write_wav(inputs["audio"], voice(5.0))
    before = sorted(tmp_path.iterdir())
    flags = [f"--{name}={value}" for name, value in inputs.items()]
    command = [sys.executable, "-m", "omnihuman_infer.cli", "generate", *flags, f"--model={model}", "--num-steps=1000"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A shell's background job ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(".omnihuman-*.part.mp4")):
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == expected
    assert b"Traceback" not in error
    assert sorted(tmp_path.iterdir()) == before
    assert inputs["out"].read_bytes() == b"precious"
