"""What the command line shows while it works, and how it stops."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from omnihuman_infer.pipeline import OnProgress


@contextmanager
def notes(*, quiet: bool) -> Iterator[None]:
    """Print warnings, such as a prompt that is cut, in one line and without a place in the code."""

    def show(message: Warning | str, *details: object, **more: object) -> None:
        if not quiet:
            print(f"note: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextmanager
def progress(*, quiet: bool) -> Iterator[OnProgress | None]:
    """A bar over the denoising steps of all segments; yields what advances it, or None where nothing is shown."""
    if quiet:
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
    task = bar.add_task("", total=None)

    def on_progress(segment: int, num_segments: int, step: int, num_steps: int) -> None:
        # Shown from the first step on: an error before it stays one line.
        bar.start()
        bar.update(
            task,
            description=f"segment {segment + 1}/{num_segments}",
            total=num_segments * num_steps,
            completed=segment * num_steps + step,
        )

    try:
        yield on_progress
    finally:
        # Stopping a bar that was never shown would print an empty line.
        if bar.live.is_started:
            bar.stop()


@contextmanager
def terminate_cleanly() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that no half-written file stays behind."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:
        # Only the main thread may set handlers; elsewhere the caller's own handling stays.
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
