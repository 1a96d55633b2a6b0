"""Progress bars of the terminal."""

from __future__ import annotations

from types import TracebackType

from rich.progress import Progress, TaskID


class CountingBar(Progress):
    """A bar that goes away where an error ends the work before any of it was done: the message stands alone then."""

    _moved = False

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Count work that was done."""
        self._moved = self._moved or advance > 0
        super().advance(task_id, advance)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the bar."""
        if kind is None or self._moved:
            super().__exit__(kind, error, trace)
            return
        self.live.transient = True
        # Not Progress.stop, which leaves an empty line in a file.
        self.live.stop()
