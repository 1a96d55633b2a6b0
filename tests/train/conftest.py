from pathlib import Path

import pytest

from .models import write_latents


@pytest.fixture(scope="session")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("encoded") / "latents")
