from pathlib import Path

import pytest

from omnihuman_infer import GenerateRequest, OmniHumanPipeline

from .files import voice, write_picture, write_wav
from .models import save_toy


@pytest.fixture(scope="session")
def toy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy(tmp_path_factory.mktemp("models") / "toy")


@pytest.fixture(scope="session")
def toy(toy_dir: Path) -> OmniHumanPipeline:
    return OmniHumanPipeline.from_pretrained(toy_dir, device="cpu")


@pytest.fixture
def request_(tmp_path: Path) -> GenerateRequest:
    """A good request of one second: 25 frames, two segments of the toy model."""
    return GenerateRequest(
        image=write_picture(tmp_path / "face.png"),
        audio=write_wav(tmp_path / "voice.wav", voice(1.0)),
        prompt="a hum",
        out=tmp_path / "clip.mp4",
        seed=7,
    )
