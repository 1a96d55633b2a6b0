"""Another team's VAE or backbone, installed as a plugin, generates through the same pipeline."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import av
import pytest

from tests.infer.files import voice, write_picture, write_wav

EXAMPLES = Path(__file__).parents[2] / "examples"

# Makes the example's model directory, then calls the command line, in one process: torch is slow to import.
SCRIPT = """
import runpy, sys
example, model, *arguments = sys.argv[1:]
runpy.run_path(example + "/make_model_dir.py")["make_model_dir"](model)
from omnihuman_infer.cli import main
sys.exit(main(["generate", "--model", model, *arguments]))
"""


def install(example: Path, target: Path) -> None:
    """Lay a package out as ``pip install --target`` does, without a network or a build."""
    project = tomllib.loads((example / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    shutil.copytree(example / "src", target, dirs_exist_ok=True)
    info = target / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def run(code: str, *arguments: object, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("example", ["bring_your_own_vae", "bring_your_own_backbone"])
def test_plugin_generates_and_its_absence_is_named(tmp_path: Path, example: str) -> None:
    installed = tmp_path / "site"
    install(EXAMPLES / example, installed)
    picture = write_picture(tmp_path / "face.png")
    sound = write_wav(tmp_path / "voice.wav", voice(1.0))
    out, model = tmp_path / "clip.mp4", tmp_path / "model"
    flags = [
        f"--image={picture}",
        f"--audio={sound}",
        f"--out={out}",
        "--prompt=a hum",
        "--num-steps=1",
        "--device=cpu",
    ]
    done = run(SCRIPT, EXAMPLES / example, model, *flags, path=installed)
    assert done.returncode == 0, done.stderr
    with av.open(str(out)) as container:
        assert container.streams.video[0].frames == 25
        assert container.streams.audio[0].codec_context.name == "aac"

    # The same directory where the plugin is not installed: one line that says so, and the video stays.
    before = out.read_bytes()
    code = "import sys; from omnihuman_infer.cli import main; sys.exit(main(['generate', *sys.argv[1:]]))"
    done = run(code, f"--model={model}", *flags)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "is not installed" in done.stderr
    assert out.read_bytes() == before
