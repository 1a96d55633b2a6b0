"""Bad input to the command line: one clear line and exit code 2, before any work."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from omnihuman_train.__about__ import __version__
from omnihuman_train.cli import main

DEBUG = "omnihuman_train.recipes.debug:debug"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "omnihuman_train.recipes.huge:huge"], "cannot import 'omnihuman_train.recipes.huge'"),
        (["--config", "omnihuman_train.recipes.debug:huge"], "has no function 'huge'"),
        (["--config", "omnihuman_train.recipes.debug"], "write it as module:function"),
        (["--config", "tests.train.recipes:NOT_A_FUNCTION"], "has no function"),
        (
            ["--config", "tests.train.recipes:no_recipe"],
            "must return a TrainConfig, a StageConfig or a VAETrainConfig, got dict",
        ),
        (
            ["--config", "tests.train.recipes:pose_first"],
            "'IPA' trains ['text', 'pose']: a stronger condition joins only",
        ),
        (["--parts", "render,train"], "--parts: unknown ['train']; known are"),
        (["--parts", ""], "--parts: unknown"),
        (["--trial", "0"], "--trial must be at least 1, got 0"),
        (["--trial", "-3"], "--trial must be at least 1, got -3"),
        (["--set", "run.speed=3"], "--set run.speed: unknown field 'speed'; known fields are steps"),
        (["--set", "run.steps"], "write it as field.subfield=value"),
        (["--set", "run.batch_size=many"], "run.batch_size: must be int, got 'many'"),
        (["--set", "run.precision=fp8"], "run.precision: must be one of 'bf16', 'fp32', got 'fp8'"),
        (["--set", "run.steps=7"], "run.steps is 7, but the stages add up to 30; make them equal"),
        (["--set", "preset=huge"], "preset 'huge' of 'causal' does not exist; it has ['base', 'tiny']"),
        (["--set", "vae_reconstruction=l7"], "reconstruction must be 'l1' or 'charbonnier', got 'l7'"),
        (["--set", "run.device=abacus"], "run.device 'abacus' cannot be used here"),
        (["--set", "vae.device=meta"], "; for the CPU give --set vae.device=cpu"),
        (
            ["--config", "omnihuman_train.recipes.vae:small", "--set", "run.device=hpu"],
            "run.device 'hpu' cannot be used",
        ),
        (["--config", DEBUG, "--speed", "3"], "unrecognized arguments: --speed 3; see omnihuman-train --help"),
        (["--set", "clips.sizes=[[32, 32], [40, 24]]"], "clips.sizes: (40, 24) must be multiples of 16 pixels"),
        (["--set", "clips.sizes=[[32, 32], [30, 32]]"], "height must be a multiple of 8, got 30"),
        (["--set", "clips.clips=[3]"], "clips.clips needs one entry per size, got 1"),
        (["--set", "clips.clips=[3, 0]"], "one clip per size"),
        (["--set", "clips.num_frames=20"], "clips.num_frames is 20; the next length that the VAE takes is 21"),
        (["--set", "vae_frames=8"], "vae_frames is 8; the next length that the VAE takes is 9"),
        (["--set", "vae_frames=25"], "vae_frames is 25, longer than clips.num_frames, 21"),
        (["--set", "segment.latent_frames=6"], "needs clips of at least 7 latent frames, got 6"),
        (["--set", "segment.motion_latents=1"], "generation.motion_frames = 5 are 2 latent frames; make them agree"),
        (["--set", "flow.mouth_weight=0"], "flow.mouth_weight must be positive"),
        (["--set", "run.optimizer.lr=-1"], "optimizer.lr must be positive"),
    ],
)
def test_a_wrong_request_is_one_line_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    config = [] if "--config" in arguments else ["--config", DEBUG]
    assert main(["run", *config, *arguments, "--out", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("omnihuman-train: ")
    assert message in lines[0]
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_no_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    assert main(["run", "--config", DEBUG, "--out", str(out)]) == 2
    assert str(out) in capsys.readouterr().err
    assert out.read_text() == "mine"


def test_missing_arguments_are_one_line_and_two(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in ((["run", "--config", DEBUG], "--out"), ([], "command"), (["data"], "action")):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("omnihuman-train: the following arguments are required: ")
        assert message in line
        assert "--help" in line


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"omnihuman-train {__version__}\n"


def test_a_recipe_in_the_current_folder_is_found(tmp_path: Path) -> None:
    """As a user runs it: the console script, whose own folder is first on the path."""
    (tmp_path / "mine_alone.py").write_text("from omnihuman_train.recipes.debug import debug as mine\n")
    script = Path(sys.executable).with_name("omnihuman-train")
    command = [str(script), "plan", "--config", "mine_alone:mine", "--gpus", "1", "--gpu", "h100"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_place_that_cannot_be_written_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["run", "--config", DEBUG], ["data", "pack", "--characters", "1", "--frames", "5"]):
        assert main([*command, "--out", "/proc/nowhere"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("omnihuman-train: --out /proc/nowhere: cannot be made a folder (")


def test_too_little_gpu_memory_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(error: RuntimeError) -> int:
        def fails(*_: object) -> None:
            raise error

        monkeypatch.setattr("omnihuman_train.runs.run", fails)
        return main(["run", "--config", DEBUG, "--out", str(tmp_path)])

    assert run(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nSee documentation")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "too little free memory; raise run.accumulate" in line
    # Other errors of torch are faults, which a traceback finds.
    with pytest.raises(RuntimeError, match="shapes"):
        run(RuntimeError("shapes cannot be multiplied"))


def test_an_error_before_the_first_step_leaves_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    from omnihuman_train.loop import progress_bar

    for moved in (0, 1):
        with contextlib.suppress(ValueError), progress_bar("work", 0, 3, shown=True) as (advance, _):
            for _ in range(moved):
                advance()
            raise ValueError
        assert ("1/3" in capsys.readouterr().out) == bool(moved)


def test_stopping_by_hand_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from omnihuman_train import parts

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(parts.PARTS, "render", stop)
    assert main(["run", "--config", DEBUG, "--out", str(tmp_path / "out")]) == 130
    assert "goes on from the last checkpoint" in capsys.readouterr().err


def test_help_needs_no_torch() -> None:
    code = "import sys; from omnihuman_train.cli import parser; parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_recipe_of_the_guide_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    code = guide.split("```python\n# my_recipes.py\n")[1].split("```")[0]
    (tmp_path / "my_recipes.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["plan", "--config", "my_recipes:audio_only", "--gpus", "1", "--gpu", "h100"]) == 0
