"""Stop signals: a run ends after a step with its checkpoint, and goes on as if it had not."""

import os
import signal
from pathlib import Path

import pytest
import torch

from omnihuman_core.checkpoint import load_safetensors
from omnihuman_train import cli
from omnihuman_train.resuming import checkpoints
from omnihuman_train.stopping import Stopped, StopSignals
from omnihuman_train.watching import StepTiming

from .test_trainer import rows, run_config, train


class Sender:
    """Sends signals to its own process after some steps."""

    def __init__(self, *sent: tuple[int, signal.Signals]) -> None:
        self._sent, self.seen = sent, []

    def step(self, step: int, output: object, timing: StepTiming) -> None:
        self.seen.append(step)
        for at, number in self._sent:
            if at == step:
                os.kill(os.getpid(), number)

    def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, latents: Path, number: signal.Signals) -> None:
    config = run_config(precision="fp32", checkpoint_minutes=60.0)
    whole = train(tmp_path / "whole", latents, config)
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    with pytest.raises(Stopped, match=f"stopped by {number.name} after 3 of 6 steps; they are saved"):
        train(tmp_path / "stopped", latents, config, watchers=[Sender((1, number))])
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before
    assert [path.name for path in checkpoints(tmp_path / "stopped" / "checkpoints")] == ["step_00000003"]
    again = train(tmp_path / "stopped", latents, config)
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")
    for name in ("model", "ema", "optimizer"):
        mine, theirs = (
            load_safetensors(tmp_path / run / "checkpoints" / "step_00000006" / f"{name}.safetensors")
            for run in ("stopped", "whole")
        )
        assert all(torch.equal(mine[key], value) for key, value in theirs.items())
    assert all(torch.equal(again.shadow[key], value) for key, value in whole.shadow.items())


def test_a_second_interrupt_leaves_at_once(tmp_path: Path, latents: Path, capfd: pytest.CaptureFixture[str]) -> None:
    watcher = Sender((1, signal.SIGINT), (1, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, latents, run_config(checkpoint_minutes=60.0), watchers=[watcher])
    assert watcher.seen == [0, 1]
    assert not checkpoints(tmp_path / "checkpoints")
    assert "Ctrl-C again leaves at once" in capfd.readouterr().err


def test_a_signal_in_the_last_step_is_not_lost(tmp_path: Path, latents: Path) -> None:
    with pytest.raises(Stopped, match="after 6 of 6 steps"):
        train(tmp_path, latents, run_config(), watchers=[Sender((5, signal.SIGTERM))])
    assert checkpoints(tmp_path / "checkpoints")[-1].name == "step_00000006"


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert not signals.asked
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize(("by", "status"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGINT", 130)])
def test_the_exit_status_tells_a_scheduler_to_start_it_again(
    by: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise Stopped(by, 3, 10)

    monkeypatch.setattr("omnihuman_train.runs.run", stopped)
    command = ["run", "--config", "omnihuman_train.recipes.debug:debug", "--out", str(tmp_path)]
    assert cli.main(command) == status
    line = f"omnihuman-train: stopped by {by} after 3 of 10 steps; they are saved, the same command goes on\n"
    assert capsys.readouterr().err == line
    # Of several processes one tells it.
    monkeypatch.setenv("RANK", "1")
    assert cli.main(command) == status
    assert not capsys.readouterr().err
