"""Folders that commands write to."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK = ".lock"


def make_folder(folder: Path) -> None:
    """Make the folder that ``--out`` names, if it is not there.

    Raises:
        ValueError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {folder}: cannot be made a folder ({error.strerror}); choose another place") from error


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Keep other runs out of the folder of a run, as long as this one lives; where files cannot be locked, nothing.

    Raises:
        ValueError: another one is at work there.
    """
    make_folder(folder)
    path = folder / _LOCK
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"--out {folder}: another run is at work in it; wait for its end, or choose another place (if there is "
                f"none, delete {path})"
            ) from None
        except OSError:
            # A file system without locks.
            pass
        yield
