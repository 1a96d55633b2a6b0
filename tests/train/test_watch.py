"""What is recorded, and what stops a run: on planted spikes, and on healthy losses that must not stop."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from omnihuman_core.contracts import LossOutput
from omnihuman_train.watch import WatchConfig, watchers
from omnihuman_train.watch_gpu import GpuMeter, peak_flops
from omnihuman_train.watch_guard import LossGuard, check_not_stopped
from omnihuman_train.watch_record import Recorder, RowSink, SpeedMeter, TerminalSink
from omnihuman_train.watch_tensorboard import TensorBoardSink, WandbSink
from omnihuman_train.watching import StepTiming

TIMING = StepTiming(data_seconds=0.1, step_seconds=2.0, samples=8)


def output(loss: float, **metrics: Any) -> LossOutput:
    return LossOutput(loss=torch.tensor(loss), metrics={k: torch.as_tensor(v) for k, v in metrics.items()})


def healthy(count: int, *, seed: int = 0, spread: float = 0.15) -> list[float]:
    """Losses that fall from 1 to 0.3 with the noise of small batches."""
    generator = torch.Generator().manual_seed(seed)
    noise = (torch.randn(count, generator=generator) * spread).exp().tolist()
    return [(0.3 + 0.7 * 0.999**step) * factor for step, factor in enumerate(noise)]


def test_healthy_losses_never_stop(tmp_path: Path) -> None:
    for seed, spread in ((0, 0.15), (1, 0.3), (2, 0.01)):
        guard = LossGuard(tmp_path / "guard")
        for step, loss in enumerate(healthy(3000, seed=seed, spread=spread)):
            guard.step(step, output(loss, grad_norm=1.0), TIMING)
    assert not list((tmp_path / "guard").glob("*.json"))


@pytest.mark.parametrize("at", [60, 700])
def test_a_planted_spike_stops_with_the_samples_of_its_step(tmp_path: Path, at: int) -> None:
    guard = LossGuard(tmp_path / "guard", keys=lambda: [f"sample {at}", "other"], rank=3)
    losses = healthy(1000)
    losses[at] *= 6
    for step, loss in enumerate(losses[:at]):
        guard.step(step, output(loss), TIMING)
    with pytest.raises(FloatingPointError, match=rf"step {at}: the loss is .* a jump: .* is the limit"):
        guard.step(at, output(losses[at]), TIMING)
    note = json.loads((tmp_path / "guard" / f"step_{at:08d}_rank_3.json").read_text())
    assert note["keys"] == [f"sample {at}", "other"]
    assert note["losses_before"] == pytest.approx(losses[at - 20 : at])
    assert note["loss"] == pytest.approx(losses[at])


@pytest.mark.parametrize(
    ("loss", "norm", "message"),
    [
        (float("nan"), 1.0, "the loss is nan"),
        (float("inf"), 1.0, "the loss is inf"),
        (0.5, float("nan"), "the norm of the gradient is nan"),
    ],
)
def test_what_is_not_finite_stops_at_once(tmp_path: Path, loss: float, norm: float, message: str) -> None:
    guard = LossGuard(tmp_path, keys=lambda: ["a"])
    with pytest.raises(FloatingPointError, match=f"step 0: {message}"):
        guard.step(0, output(loss, grad_norm=norm), TIMING)
    assert json.loads((tmp_path / "step_00000000_rank_0.json").read_text())["keys"] == ["a"]


def test_nothing_is_judged_before_there_is_a_history(tmp_path: Path) -> None:
    guard = LossGuard(tmp_path)
    for step in range(49):
        guard.step(step, output(1.0 if step % 7 else 9.0), TIMING)


def test_a_run_that_goes_on_remembers_the_losses_before(tmp_path: Path) -> None:
    losses = healthy(300)
    first = LossGuard(tmp_path)
    for step, loss in enumerate(losses):
        first.step(step, output(loss), TIMING)
    before = first.limit()
    first.close()
    with (tmp_path / "losses.jsonl").open("a") as file:
        file.write('{"step": 300, "lo')
    # On every rank; steps after the checkpoint are done anew.
    for rank, start in ((1, 300), (0, 260)):
        guard = LossGuard(tmp_path, rank=rank)
        for step in range(start, 300):
            guard.step(step, output(losses[step]), TIMING)
        with pytest.raises(FloatingPointError, match="step 300: the loss is .* a jump"):
            guard.step(300, output(6 * losses[299]), TIMING)
        assert guard.limit() == before
        guard.close()
    unstopped = LossGuard(tmp_path / "other")
    unstopped.step(300, output(1.0), TIMING)
    assert unstopped.limit() == float("inf")


def test_a_run_that_was_stopped_waits_for_somebody_to_look(tmp_path: Path) -> None:
    check_not_stopped(tmp_path)
    guard = LossGuard(tmp_path, keys=lambda: ["a"], rank=2)
    guard.step(0, output(0.5), TIMING)
    check_not_stopped(tmp_path)
    guard.stopped("a jump")
    assert json.loads((tmp_path / "stopped_rank_2.json").read_text())["keys"] == ["a"]
    message = r"stopped.json: the guard stopped this run \(a jump\); look at the samples .* then delete .*stopped.json"
    with pytest.raises(ValueError, match=message):
        check_not_stopped(tmp_path)
    (tmp_path / "stopped.json").write_text("")
    with pytest.raises(ValueError, match="its note cannot be read"):
        check_not_stopped(tmp_path)
    (tmp_path / "stopped.json").unlink()
    check_not_stopped(tmp_path)


def test_a_loss_that_hardly_moves_may_move_a_little(tmp_path: Path) -> None:
    guard = LossGuard(tmp_path)
    for step in range(100):
        guard.step(step, output(1.0), TIMING)
    guard.step(100, output(1.19), TIMING)
    with pytest.raises(FloatingPointError):
        guard.step(101, output(1.21), TIMING)


def test_records_have_means_speed_and_mfu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speed = SpeedMeter(sample_flops=1e12, peak_flops=20e12, devices=2)
    written: list[tuple[int, dict[str, float]]] = []

    class Keep:
        def write(self, step: int, scalars: Any) -> None:
            written.append((step, dict(scalars)))

        def close(self) -> None:
            written.append((-1, {}))

    recorder = Recorder(2, speed=speed, gpu=None, sinks=[Keep(), RowSink(tmp_path / "watch.jsonl"), TerminalSink()])
    for step, loss in enumerate([1.0, 3.0, 5.0]):
        per_sample = torch.tensor([loss, float("nan")])
        recorder.step(step, LossOutput(loss=torch.tensor(loss), metrics={"loss/text": per_sample}), TIMING)
    recorder.close()
    assert [step for step, _ in written] == [2, 3, -1]
    first = written[0][1]
    assert first["loss"] == first["loss/text"] == 2.0
    assert first["speed/samples_per_second"] == 4.0
    assert first["speed/step_seconds"] == 2.0
    assert first["speed/data_wait"] == pytest.approx(0.05)
    # 4 samples a second of 1e12 operations each, of 2 x 20e12 that the devices have.
    assert first["speed/mfu"] == pytest.approx(0.1)
    assert written[1][1]["loss"] == 5.0
    rows = [json.loads(line) for line in (tmp_path / "watch.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 3]
    assert "loss" not in rows[0]
    assert capsys.readouterr().out.splitlines()[0] == "step 2, 4 samples/s, data wait 5.0 %, MFU 10.0 %"


def test_rows_of_steps_that_are_done_again_are_replaced(tmp_path: Path) -> None:
    for life, steps in enumerate(((2, 4, 6), (4, 6, 8))):
        sink = RowSink(tmp_path / "watch.jsonl")
        for step in steps:
            sink.write(step, {"speed/x": float(life)})
    rows = [json.loads(line) for line in (tmp_path / "watch.jsonl").read_text().splitlines()]
    assert [(row["step"], row["speed/x"]) for row in rows] == [(2, 0.0), (4, 1.0), (6, 1.0), (8, 1.0)]


def test_tensorboard_shows_no_step_twice(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for life, steps in enumerate(((2, 4, 6), (4, 6, 8))):
        sink = TensorBoardSink(tmp_path)
        for step in steps:
            sink.write(step, {"loss": float(life)})
        sink.close()
    events: Any = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(2, 0.0), (4, 1.0), (6, 1.0), (8, 1.0)]


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = TensorBoardSink(tmp_path)
    sink.write(20, {"loss": 0.5, "speed/mfu": 0.25})
    sink.write(40, {"loss": 0.25})
    sink.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(20, 0.5), (40, 0.25)]
    assert [event.value for event in events.Scalars("speed/mfu")] == [0.25]


def test_wandb_gets_the_same_scalars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []
    run = types.SimpleNamespace(
        log=lambda scalars, step: calls.append(("log", (scalars, step))), finish=lambda: calls.append(("finish", None))
    )
    module = types.SimpleNamespace(init=lambda **arguments: calls.append(("init", arguments)) or run)
    monkeypatch.setitem(sys.modules, "wandb", module)  # type: ignore[arg-type]
    sink = WandbSink("omni", tmp_path / "run7")
    sink.write(20, {"loss": 0.5})
    sink.close()
    assert calls[0][1]["project"] == "omni"
    assert calls[0][1]["name"] == "run7"
    assert calls[1:] == [("log", ({"loss": 0.5}, 20)), ("finish", None)]
    # The same run goes on; another of the same name is another.
    for folder in (tmp_path / "run7", tmp_path / "other" / "run7"):
        WandbSink("omni", folder)
    first, _, _, again, other = (arguments for _, arguments in calls)
    assert len(first["id"]) == 16
    assert first["id"] == again["id"] != other["id"]
    assert again["resume"] == "allow"


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"pip install omnihuman-train\[wandb\]"):
        watchers(WatchConfig(wandb="omni"), tmp_path)
    with pytest.raises(ValueError, match=r"pip install omnihuman-train\[tensorboard\]"):
        watchers(WatchConfig(tensorboard=True), tmp_path)


UUID = "4e9b1c62-0000-1111-2222-333344445555"
CUDA = torch.device("cuda", 1)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch sees two GPUs, and the second of them is the one that the management library has."""
    found = {device: types.SimpleNamespace(uuid=uuid) for device, uuid in ((CUDA, UUID), (torch.device("cuda:0"), "0"))}
    monkeypatch.setattr(torch.cuda, "get_device_properties", found.__getitem__)


class FakeNvml(types.SimpleNamespace):
    """The management library with one GPU whose power cannot be read."""

    class NVMLError(Exception):
        pass

    NVML_TEMPERATURE_GPU = 0

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        if uuid != f"GPU-{UUID}":
            raise self.NVMLError("no such device")
        return 7

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "NVIDIA H100 80GB HBM3"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return types.SimpleNamespace(used=3 * 2**30)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        raise self.NVMLError("not supported")

    def nvmlDeviceGetTemperature(self, handle: int, kind: int) -> int:
        return 64

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return types.SimpleNamespace(gpu=97)


@pytest.mark.usefixtures("gpus")
def test_what_a_gpu_does_not_tell_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())  # type: ignore[arg-type]
    meter = GpuMeter(CUDA)
    assert meter.read() == {"gpu/memory_gib": 3.0, "gpu/temperature_celsius": 64.0, "gpu/utilisation": 0.97}
    assert meter.peak_flops == 989e12
    assert GpuMeter(torch.device("cuda:0")).read() == {}


@pytest.mark.usefixtures("gpus")
def test_a_run_on_the_cpu_records_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())  # type: ignore[arg-type]
    meter = GpuMeter(torch.device("cpu"))
    assert (meter.read(), meter.peak_flops) == ({}, None)
    for device, names in ((torch.device("cpu"), set()), (CUDA, {"gpu/memory_gib"})):
        folder = tmp_path / device.type
        folder.mkdir()
        (recorder,) = watchers(WatchConfig(guard=False, every=1), folder, device=device)
        recorder.step(0, output(1.0), TIMING)
        recorder.close()
        row = json.loads((folder / "watch.jsonl").read_text())
        assert {name for name in row if name == "gpu/memory_gib"} == names


def test_rates_go_by_the_name_of_the_device() -> None:
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("NVIDIA GeForce RTX 4090") == 165e12
    assert peak_flops("NVIDIA GeForce GT 710") is None


@pytest.mark.usefixtures("gpus")
def test_without_a_driver_a_meter_is_silent_and_asks_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    class NoDriver(FakeNvml):
        def nvmlInit(self) -> None:
            asked.append("driver")
            raise self.NVMLError("driver not loaded")

    for module in (NoDriver(), None):
        monkeypatch.setitem(sys.modules, "pynvml", module)  # type: ignore[arg-type]
        meter = GpuMeter(CUDA)
        assert [meter.read() for _ in range(3)] == [{}, {}, {}]
        assert meter.peak_flops is None
    assert asked == ["driver"]
    assert capsys.readouterr() == ("", "")


def test_rank_zero_alone_writes(tmp_path: Path) -> None:
    kinds = [[type(w).__name__ for w in watchers(WatchConfig(), tmp_path, rank=rank)] for rank in (0, 1)]
    assert kinds == [["LossGuard", "Recorder"], ["LossGuard"]]
    assert [type(w) for w in watchers(WatchConfig(guard=False), tmp_path, rank=1)] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every": 0}, "watch.every must be at least 1"),
        ({"spike_window": 5}, "watch.spike_window must be at least 20"),
        ({"spike_deviations": 0.0}, "watch.spike_deviations must be positive"),
        ({"validation_every": -1}, "watch.validation_every must not be negative"),
        ({"validation_steps": 0}, "watch.validation_steps must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WatchConfig(**changes)
