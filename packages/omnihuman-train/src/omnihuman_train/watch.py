"""What is recorded beside the loss, and what stops a run: settings, and the watchers they ask for.

Every part is a :class:`~omnihuman_train.watching.Watcher`; the training loop knows none of them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from omnihuman_train.watch_gpu import GpuMeter
from omnihuman_train.watch_guard import LossGuard
from omnihuman_train.watch_record import Recorder, RowSink, Sink, SpeedMeter, TerminalSink
from omnihuman_train.watch_tensorboard import TensorBoardSink, WandbSink
from omnihuman_train.watching import Watcher

_CPU = torch.device("cpu")

# Folder of the guard in that of a run.
GUARD = "guard"


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """What is recorded, and what stops a run.

    Attributes:
        every: Steps between two records.
        tensorboard: Write scalars for TensorBoard, into ``tensorboard/`` (extra ``tensorboard``).
        wandb: Project of Weights & Biases that the same scalars go to; None sends nothing anywhere.
        gpu: Record memory, power, temperature and load of the NVIDIA GPU, if the run is on one.
        guard: Stop at a loss that is not finite, or that jumps.
        spike_deviations: How far over the median of the last losses a loss counts as a jump, in deviations.
        spike_window: Losses that median and deviation are taken of.
        validation_every: Steps between validations, loss and videos; 0 makes none.
        validation_data: Encoded data set that is never trained on: its loss is reported, and videos show its samples.
            None has no such loss, and videos of samples that are trained on.
        validation_batches: Batches of it that the loss is measured on, of the run's size.
        validation_seeds: Seeds of the videos' noise, one video each; none makes no videos.
        validation_steps: Steps of their sampler.
    """

    every: int = 20
    tensorboard: bool = False
    wandb: str | None = None
    gpu: bool = True
    guard: bool = True
    spike_deviations: float = 10.0
    spike_window: int = 200
    validation_every: int = 0
    validation_data: str | None = None
    validation_batches: int = 1
    validation_seeds: tuple[int, ...] = (0, 1)
    validation_steps: int = 20

    def __post_init__(self) -> None:
        for name in ("every", "validation_steps", "validation_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"watch.{name} must be at least 1, got {getattr(self, name)}")
        if self.spike_window < 20:
            raise ValueError(f"watch.spike_window must be at least 20, got {self.spike_window}")
        if not self.spike_deviations > 0:
            raise ValueError(f"watch.spike_deviations must be positive, got {self.spike_deviations}")
        if self.validation_every < 0:
            raise ValueError(f"watch.validation_every must not be negative, got {self.validation_every}")
        if self.validation_data is not None and not self.validation_every:
            raise ValueError(
                "watch.validation_data is set, but watch.validation_every is 0; set the steps between two validations"
            )


def watchers(
    config: WatchConfig,
    out: Path,
    *,
    sample_flops: float | None = None,
    keys: Callable[[], Sequence[str]] = list,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device = _CPU,
) -> list[Watcher]:
    """The watchers of one rank of a run, validation apart.

    Args:
        config: What to watch.
        out: Folder of the run; ``watch.jsonl``, ``tensorboard/`` and ``guard/`` are made in it.
        sample_flops: Model operations of one sample, :func:`omnihuman_train.flops.training_flops`, for MFU.
        keys: Gives the keys of the samples that this rank had last, for the guard.
        rank: Number of this rank; rank 0 alone writes records.
        world_size: Ranks.
        device: Device of this rank, whose state is recorded if it is a GPU.

    Raises:
        ValueError: a package that is asked for is not installed.
    """
    found: list[Watcher] = []
    if config.guard:
        found.append(
            LossGuard(out / GUARD, deviations=config.spike_deviations, window=config.spike_window, keys=keys, rank=rank)
        )
    if rank == 0:
        gpu = GpuMeter(device) if config.gpu else None
        sinks: list[Sink] = [RowSink(out / "watch.jsonl"), TerminalSink()]
        if config.tensorboard:
            sinks.append(TensorBoardSink(out / "tensorboard"))
        if config.wandb is not None:
            sinks.append(WandbSink(config.wandb, out))
        peak = gpu.peak_flops if gpu is not None else None
        speed = SpeedMeter(sample_flops=sample_flops, peak_flops=peak, devices=world_size)
        found.append(Recorder(config.every, speed=speed, gpu=gpu, sinks=sinks))
    return found
