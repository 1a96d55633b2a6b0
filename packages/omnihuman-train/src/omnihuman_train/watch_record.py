"""Scalars of a run every few steps: means of loss and metrics, speed, and the state of the GPU."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from omnihuman_core.contracts import LossOutput
from omnihuman_train.flops import mfu
from omnihuman_train.metrics import Means, drop_rows_after
from omnihuman_train.watch_gpu import GpuMeter
from omnihuman_train.watching import StepTiming

Scalars = Mapping[str, float]


class Sink(Protocol):
    """Where scalars go."""

    def write(self, step: int, scalars: Scalars) -> None:
        """Take the scalars after ``step`` steps done."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


class SpeedMeter:
    """Samples a second, time spent waiting for data, and MFU over the steps since the last reading.

    Args:
        sample_flops: Model operations of a sample; None leaves MFU out.
        peak_flops: Nominal matrix rate of one device; None leaves MFU out.
        devices: Devices that share the samples.
    """

    def __init__(self, *, sample_flops: float | None = None, peak_flops: float | None = None, devices: int = 1) -> None:
        self._flops, self._peak, self._devices = sample_flops, peak_flops, devices
        self._steps, self._samples, self._seconds, self._waited = 0, 0, 0.0, 0.0

    def add(self, timing: StepTiming) -> None:
        """Take in one step."""
        self._steps += 1
        self._samples += timing.samples
        self._seconds += timing.step_seconds
        self._waited += timing.data_seconds

    def read(self) -> dict[str, float]:
        """``speed/samples_per_second``, ``speed/step_seconds``, ``speed/data_wait`` (a share) and ``speed/mfu``."""
        seconds = max(self._seconds, 1e-9)
        values = {
            "speed/samples_per_second": self._samples / seconds,
            "speed/step_seconds": seconds / max(self._steps, 1),
            "speed/data_wait": self._waited / seconds,
        }
        if self._flops is not None and self._peak is not None:
            values["speed/mfu"] = mfu(self._flops * self._samples, seconds, self._peak * self._devices)
        self._steps, self._samples, self._seconds, self._waited = 0, 0, 0.0, 0.0
        return values


class Recorder:
    """Gives every sink the scalars of the last ``every`` steps. A :class:`~omnihuman_train.watching.Watcher`.

    Args:
        every: Steps between two records; steps that are left at the end are recorded when the run closes.
        speed: Meter of the speed.
        gpu: Meter of the GPU, or None.
        sinks: Where the scalars go.
    """

    def __init__(self, every: int, *, speed: SpeedMeter, gpu: GpuMeter | None, sinks: Sequence[Sink]) -> None:
        self._every, self._speed, self._gpu, self._sinks = every, speed, gpu, sinks
        self._means = Means()
        self._done = 0

    def step(self, step: int, output: LossOutput, timing: StepTiming) -> None:
        """Take in one step, and write a record where one is due."""
        self._means.add(output)
        self._speed.add(timing)
        self._done = step + 1
        if self._done % self._every == 0:
            self._write()

    def close(self) -> None:
        """Write what is left and close the sinks."""
        if self._means:
            self._write()
        for sink in self._sinks:
            sink.close()

    def _write(self) -> None:
        scalars = self._means.take() | self._speed.read() | (self._gpu.read() if self._gpu is not None else {})
        for sink in self._sinks:
            sink.write(self._done, scalars)


class RowSink:
    """Speed and state of the GPU as JSON lines; loss and metrics have a file of their own.

    Args:
        path: The file; rows that are there stay, up to the first one that a run which goes on writes anew.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._started = False

    def write(self, step: int, scalars: Scalars) -> None:
        """Append a row."""
        row = {name: round(value, 6) for name, value in scalars.items() if name.startswith(("speed/", "gpu/"))}
        if not self._started:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            drop_rows_after(self.path, step - 1)
            self._started = True
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **row}) + "\n")

    def close(self) -> None:
        """Nothing is open between two rows."""


class TerminalSink:
    """One line for whoever sits in front of it, above the progress bar."""

    def write(self, step: int, scalars: Scalars) -> None:
        """Print the line."""
        parts = [f"step {step}", f"{scalars['speed/samples_per_second']:.3g} samples/s"]
        parts.append(f"data wait {100 * scalars['speed/data_wait']:.1f} %")
        if "speed/mfu" in scalars:
            parts.append(f"MFU {100 * scalars['speed/mfu']:.1f} %")
        if "gpu/memory_gib" in scalars:
            parts.append(f"GPU {scalars['gpu/memory_gib']:.1f} GiB")
        if "gpu/power_watts" in scalars:
            parts.append(f"{scalars['gpu/power_watts']:.0f} W")
        if "gpu/temperature_celsius" in scalars:
            parts.append(f"{scalars['gpu/temperature_celsius']:.0f} C")
        print(", ".join(parts), flush=True)

    def close(self) -> None:
        """Nothing to close."""
