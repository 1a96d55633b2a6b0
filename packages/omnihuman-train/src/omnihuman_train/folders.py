"""Folders that commands write to."""

from __future__ import annotations

from pathlib import Path


def make_folder(folder: Path) -> None:
    """Make the folder that ``--out`` names, if it is not there.

    Raises:
        ValueError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {folder}: cannot be made a folder ({error.strerror}); choose another place") from error
