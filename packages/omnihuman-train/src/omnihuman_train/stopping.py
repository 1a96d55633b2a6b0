"""Stop signals of schedulers and of people: they end a run after a step, with a checkpoint, not amid one."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

# SIGTERM comes from torchrun, Slurm, Kubernetes and `kill`; SIGUSR1 from `sbatch --signal=USR1@SECONDS`.
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_NOTICE = b"\nstopping after this step, with a checkpoint; Ctrl-C again leaves at once\n"


class Stopped(Exception):
    """A run has ended before its last step because it was asked to; its checkpoint is written.

    Args:
        by: Name of the signal.
        done: Steps done.
        steps: Steps of the whole run.
    """

    def __init__(self, by: str, done: int, steps: int) -> None:
        super().__init__(f"stopped by {by} after {done} of {steps} steps; they are saved, the same command goes on")
        self.by = by


class StopSignals:
    """Notes stop signals while it is entered; what was in their place before comes back.

    A second Ctrl-C is not noted but raises ``KeyboardInterrupt``. A signal that the process ignores stays ignored, and
    outside of the main thread, where Python takes none, nothing is noted.

    Args:
        notice: Whether to tell a person who pressed Ctrl-C what happens now.

    Attributes:
        asked: Name of the signal that came first; empty while none has.
    """

    def __init__(self, *, notice: bool = True) -> None:
        self.asked = ""
        self._notice = notice
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Take the signals over."""
        if threading.current_thread() is threading.main_thread():
            taken = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in taken}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.asked:
                raise KeyboardInterrupt
            if self._notice:
                # Not through Python's streams, in the middle of whose writing a signal may come.
                os.write(2, _NOTICE)
        self.asked = self.asked or signal.Signals(number).name
