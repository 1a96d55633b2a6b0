"""What torchrun starts: a run of two processes, of which one kills itself in its first life.

export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
torchrun --nproc-per-node=2 --max-restarts=3 -m tests.train.distributed.elastic OUT LATENTS
"""

from __future__ import annotations

import os
import signal
import sys

from omnihuman_train.distributed.mesh import leave
from omnihuman_train.watching import StepTiming
from tests.train.distributed import jobs


class Killer:
    """Ends its process by force after step 9."""

    def step(self, step: int, output: object, timing: StepTiming) -> None:
        if step == 9 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)

    def close(self) -> None:
        """Nothing to close."""


if __name__ == "__main__":
    watchers = [Killer()] if os.environ["RANK"] == "1" else []
    jobs.train(sys.argv[1], sys.argv[2], minutes=0.0, watchers=watchers, timeout_minutes=0.4)
    leave()
