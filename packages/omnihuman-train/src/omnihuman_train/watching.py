"""What a training loop tells those who watch it: every step's loss and metrics, and how long the step took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from omnihuman_core.contracts import LossOutput


@dataclass(frozen=True, kw_only=True)
class StepTiming:
    """Where the time of a step went.

    Attributes:
        data_seconds: Seconds that the step waited for its batch.
        step_seconds: Seconds of the whole step, that wait included.
        samples: Samples of the step, over all ranks.
    """

    data_seconds: float
    step_seconds: float
    samples: int


class Watcher(Protocol):
    """Is told of every step after its update; raises to stop the run.

    Every rank calls the watchers it was given, with the same numbers: those that run the model belong on every rank,
    those that write files on rank 0 alone.
    """

    def step(self, step: int, output: LossOutput, timing: StepTiming) -> None:
        """Take in one step.

        Args:
            step: Its number, from 0: the batch was ``batches(step)``, and ``step + 1`` steps are done.
            output: Loss and metrics of the whole batch, whatever ranks it was spread over: detached, scalars or one
                value per sample, ``grad_norm`` among them.
            timing: Its duration.
        """
        ...

    def close(self) -> None:
        """The run ends here, done or not."""
        ...
