"""What torchrun starts: a run of two processes, of which one kills itself in its first life, or torchrun is stopped.

export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
torchrun --nproc-per-node=2 --max-restarts=3 -m tests.train.distributed.elastic OUT LATENTS kill|stop
"""

from __future__ import annotations

import os
import signal
import sys
import time

from omnihuman_train.distributed.mesh import leave
from omnihuman_train.watching import StepTiming, Watcher
from tests.train.distributed import jobs


class Killer:
    """Ends its process by force after step 9."""

    def step(self, step: int, output: object, timing: StepTiming) -> None:
        if step == 9 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)

    def close(self) -> None:
        """Nothing to close."""


class Stopper:
    """Stops torchrun after step 9, as a scheduler does."""

    def step(self, step: int, output: object, timing: StepTiming) -> None:
        if step == 9:
            os.kill(os.getppid(), signal.SIGTERM)
        # Torchrun passes it on within this time.
        time.sleep(0.2)

    def close(self) -> None:
        """Nothing to close."""


if __name__ == "__main__":
    out, latents, what = sys.argv[1:]
    watchers: list[Watcher] = []
    if os.environ["RANK"] == "1":
        watchers = [Killer() if what == "kill" else Stopper()]
    jobs.train(out, latents, minutes=0.0 if what == "kill" else 60.0, watchers=watchers, timeout_minutes=0.4)
    leave()
