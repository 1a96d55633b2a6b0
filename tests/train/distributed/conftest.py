from collections.abc import Iterator
from pathlib import Path

import pytest

from .ranks import Server


@pytest.fixture(scope="session")
def ranks() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="session")
def one(tmp_path_factory: pytest.TempPathFactory, latents: Path, ranks: Server) -> Path:
    """A run of one process."""
    out = tmp_path_factory.mktemp("one")
    assert ranks.run(1, "train", out=str(out), latents=str(latents)) == [""]
    return out


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory, latents: Path, ranks: Server) -> Path:
    """The same run of two processes."""
    out = tmp_path_factory.mktemp("two")
    assert ranks.run(2, "train", out=str(out), latents=str(latents)) == ["", ""]
    return out
