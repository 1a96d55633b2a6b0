"""The distributions of the workspace, read from their folders."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Member:
    folder: Path
    project: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.project["name"])

    @property
    def module(self) -> str:
        return self.name.replace("-", "_")

    @property
    def source(self) -> Path:
        return self.folder / "src" / self.module


def read_member(folder: Path) -> Member:
    return Member(folder=folder, project=tomllib.loads((folder / "pyproject.toml").read_text())["project"])


MEMBERS = [
    read_member(folder)
    for folder in (*sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml")), ROOT / "kernels")
]
