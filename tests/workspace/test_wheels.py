"""The built wheels generate a video by themselves: no source tree, no Triton, declared dependencies only."""

import math
import os
import struct
import subprocess
import sys
import tarfile
import wave
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import av
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from .members import MEMBERS, ROOT

INFERENCE = ("omnihuman-core", "omnihuman-vae", "omnihuman-conditions", "omnihuman-infer")
OURS = {member.name for member in MEMBERS}


def run(*command: str | Path, cwd: Path) -> str:
    """Run without the variables that could lead back to the source tree."""
    env = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build_wheel(folder: Path, work: Path) -> Path:
    """Build a wheel from the source distribution, so that a file missing there is missed here too."""
    hatchling = (sys.executable, "-m", "hatchling", "build", "--directory")
    run(*hatchling, work / folder.name, "--target", "sdist", cwd=folder)
    (archive,) = (work / folder.name).glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(work / folder.name, filter="data")
    run(*hatchling, work / "wheels", "--target", "wheel", cwd=work / folder.name / archive.name.removesuffix(".tar.gz"))
    (wheel,) = (work / "wheels").glob(f"{folder.name.replace('-', '_')}-*.whl")
    return wheel


def needed(names: set[str]) -> Iterator[Distribution]:
    """The third-party distributions that ``names`` need, found through declared requirements without extras."""
    seen: set[str] = set()
    queue = sorted(names)
    while queue:
        name = queue.pop()
        if name in seen or name == "triton":
            continue
        seen.add(name)
        found = distribution(name)
        if name not in OURS:
            yield found
        for requirement in map(Requirement, found.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                queue.append(canonicalize_name(requirement.name))


def link_third_party(target: Path) -> None:
    """Make what the wheels need visible in ``target``, instead of downloading it once more."""
    target.mkdir()
    for found in needed(set(INFERENCE)):
        for top in {file.parts[0] for file in found.files or () if file.parts[0] != ".."}:
            source = Path(str(found.locate_file(top)))
            if source.exists() and source.suffix != ".pth" and not (target / top).exists():
                (target / top).symlink_to(source)


@pytest.fixture(scope="module")
def clean_venv(tmp_path_factory):
    """A virtual environment that holds the inference wheels and what they declare."""
    work = tmp_path_factory.mktemp("clean")
    folders = {member.name: member.folder for member in MEMBERS}
    wheels = [build_wheel(folders[name], work) for name in INFERENCE]
    run(sys.executable, "-m", "venv", "--without-pip", work / "venv", cwd=work)
    python = work / "venv" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", *wheels, cwd=work)
    link_third_party(work / "third_party")
    (site,) = (work / "venv" / "lib").glob("python*/site-packages")
    (site / "third_party.pth").write_text(f"{work / 'third_party'}\n")
    return work / "venv"


def test_clean_venv_sees_neither_triton_nor_the_source_tree(clean_venv, tmp_path):
    code = (
        "import importlib.util as u, omnihuman_core, omnihuman_infer\n"
        "print(u.find_spec('triton'), u.find_spec('omnihuman_kernels'), u.find_spec('omnihuman_train'))\n"
        "print(omnihuman_core.__file__)\nprint(omnihuman_infer.__file__)"
    )
    absent, *files = run(clean_venv / "bin" / "python", "-c", code, cwd=tmp_path).splitlines()
    assert absent == "None None None"
    assert len(files) == 2
    assert all(Path(file).is_relative_to(clean_venv) for file in files)


def test_wheels_carry_the_licence(clean_venv):
    licences = list(clean_venv.glob("lib/python*/site-packages/omnihuman_*/licenses/LICENSE"))
    assert len(licences) == len(INFERENCE)
    assert {path.read_text() for path in licences} == {(ROOT / "LICENSE").read_text()}


def test_wheels_generate_a_video(clean_venv, tmp_path):
    Image.linear_gradient("L").resize((96, 96)).convert("RGB").save(tmp_path / "face.png")
    with wave.open(str(tmp_path / "voice.wav"), "wb") as voice:
        voice.setparams((1, 2, 16000, 0, "NONE", "not compressed"))
        tone = [int(8000 * math.sin(2 * math.pi * 220 * i / 16000)) for i in range(8000)]
        voice.writeframes(struct.pack(f"<{len(tone)}h", *tone))
    run(
        clean_venv / "bin" / "omnihuman-infer",
        *("generate", "--image", "face.png", "--audio", "voice.wav", "--out", "out.mp4", "--num-steps", "1"),
        cwd=tmp_path,
    )
    with av.open(str(tmp_path / "out.mp4")) as video:
        assert video.streams.video[0].codec_context.name == "h264"
        assert video.streams.audio[0].codec_context.name == "aac"
        frames = sum(1 for _ in video.decode(video=0))
    # Half a second at 25 frames per second, whole latent frames at most beyond it.
    assert 12 <= frames <= 17
