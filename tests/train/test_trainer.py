"""The loop: exact resume, checkpoints that are whole, a loss that falls, and a stop where it is no number."""

import errno
import json
import math
import resource
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from omnihuman_core.checkpoint import load_safetensors, save_safetensors
from omnihuman_core.config import to_toml
from omnihuman_core.contracts import LossOutput
from omnihuman_train.checkpointing import Checkpoints, save_checkpoint, step_generator
from omnihuman_train.config import FlowConfig, OptimizerConfig, RunConfig
from omnihuman_train.distributed.mesh import World
from omnihuman_train.ema import Ema
from omnihuman_train.folders import only_run_in
from omnihuman_train.loop import model_seed
from omnihuman_train.metrics import MetricLog
from omnihuman_train.objective import FlowObjective
from omnihuman_train.optim import OptimizerGroup
from omnihuman_train.resuming import checkpoints, load_checkpoint
from omnihuman_train.stages import Ratios, Stage
from omnihuman_train.trainer import fit
from omnihuman_train.watching import Watcher

from .models import flow_batches, narrow_mmdit, toy_model

STAGES = (
    Stage(name="text+audio", steps=4, ratios=Ratios(text=0.9, audio=0.5, pose=0.0)),
    Stage(name="all", steps=2, ratios=Ratios(text=0.9, audio=0.5, pose=0.25)),
)


def run_config(name: Any = "adamw", **changes: Any) -> RunConfig:
    optimizer = OptimizerConfig(name=name, lr=2e-3, muon_lr=1e-2, warmup_steps=2, decay_fraction=0.5)
    return RunConfig(
        **{"steps": 6, "batch_size": 4, "log_every": 1, "checkpoint_minutes": 0.0, **changes}, optimizer=optimizer
    )


class NoisyObjective(FlowObjective):
    """Draws from the global stream too, as a VAE's posterior does."""

    def __call__(self, model: Any, batch: Mapping[str, Any]) -> LossOutput:
        output = super().__call__(model, batch)
        return LossOutput(loss=output.loss * (1 + torch.rand(())), metrics=output.metrics)


def train(
    out: Path, latents: Path, config: RunConfig, *, power_cut: int | None = None, watchers: Sequence[Watcher] = ()
) -> Ema:
    batches = flow_batches(latents, batch_size=config.batch_size, stages=STAGES)

    def supply(step: int) -> dict[str, Any]:
        if step == power_cut:
            raise ConnectionError("power cut")
        return batches(step)

    model = toy_model(narrow_mmdit(), probe=True)
    objective = NoisyObjective(FlowConfig(mouth_weight=2.0, mouth_probe_weight=0.1))
    return fit(model, objective, supply, config, out, resolved='name = "toy"\n', title="toy", watchers=watchers)


def rows(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.mark.parametrize(("name", "precision"), [("adamw", "fp32"), ("muon", "fp32"), ("muon", "bf16")])
def test_a_resumed_run_equals_one_that_never_stopped(tmp_path: Path, latents: Path, name: str, precision: str) -> None:
    config = run_config(name, precision=precision)
    whole = train(tmp_path / "whole", latents, config)
    with pytest.raises(ConnectionError, match="power cut"):
        train(tmp_path / "parts", latents, config, power_cut=3)
    assert [path.name for path in checkpoints(tmp_path / "parts" / "checkpoints")] == ["step_00000002", "step_00000003"]
    # The next process starts from anything.
    torch.manual_seed(99)
    parts = train(tmp_path / "parts", latents, config)
    assert all(torch.equal(parts.shadow[key], value) for key, value in whole.shadow.items())
    for file in ("model", "ema", "optimizer"):
        first, second = (
            load_safetensors(tmp_path / run / "checkpoints" / "step_00000006" / f"{file}.safetensors")
            for run in ("whole", "parts")
        )
        assert first.keys() == second.keys()
        assert all(torch.equal(second[key], value) for key, value in first.items()), file
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    assert [row["step"] for row in rows(tmp_path / "parts")] == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, latents: Path) -> None:
    config = run_config()
    first = train(tmp_path, latents, config)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("checkpoints/*/*")}
    again = train(tmp_path, latents, config)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("checkpoints/*/*")} == files
    assert all(torch.equal(again.shadow[key], value) for key, value in first.shadow.items())


def test_a_run_is_not_given_out_as_a_shorter_one(tmp_path: Path, latents: Path) -> None:
    train(tmp_path, latents, run_config())
    with pytest.raises(ValueError, match="step_00000006: has 6 steps, but steps is 2; set it to 6 or more"):
        train(tmp_path, latents, run_config(steps=2))


def test_settings_that_changed_are_named_where_a_run_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Linear(1, 1)

    def run(steps: int, **changes: Any) -> list[str]:
        config = run_config(steps=steps, precision="fp32", **changes)
        caplog.clear()
        fit(
            model,
            lambda model, batch: LossOutput(loss=model.weight.sum()),
            lambda step: {},
            config,
            tmp_path,
            resolved=to_toml(config),
            title="toy",
        )
        return [record.getMessage() for record in caplog.records]

    assert run(2) == run(2) == []
    (line,) = run(4, seed=1, batch_size=8)
    assert line.startswith(f"{tmp_path / 'checkpoints' / 'step_00000002'}: ")
    assert "other settings: batch_size, seed, steps; the run goes on with those of now" in line


def test_the_weights_move_and_the_average_follows(tmp_path: Path, latents: Path) -> None:
    ema = train(tmp_path, latents, run_config())
    start = dict(toy_model(narrow_mmdit(), probe=True).named_parameters())
    saved = load_safetensors(tmp_path / "checkpoints" / "step_00000006" / "model.safetensors")
    moved = sum((saved[key] - value).norm() ** 2 for key, value in start.items())
    lag = sum((saved[key] - ema.shadow[key]).norm() ** 2 for key in start)
    assert 0 < lag < moved
    assert (tmp_path / "checkpoints" / "step_00000006" / "config.toml").read_text() == 'name = "toy"\n'


def test_the_loss_of_a_small_model_falls(tmp_path: Path, latents: Path) -> None:
    stages = (Stage(name="all", steps=30, ratios=Ratios(text=0.9, audio=0.5, pose=0.25)),)
    config = run_config("muon", steps=30, batch_size=8, checkpoint_minutes=10, ema_decay=0.5)
    batches = flow_batches(latents, batch_size=8, stages=stages)
    model, objective = toy_model(narrow_mmdit()), FlowObjective(FlowConfig())
    assert 1e5 < sum(p.numel() for p in model.parameters()) < 4e5

    def loss() -> float:
        with torch.no_grad():
            return sum(objective(model, batches(step)).loss.item() for step in range(1000, 1004)) / 4

    before = loss()
    fit(model, objective, batches, config, tmp_path, resolved="", title="toy").copy_to(model)
    assert loss() < 0.85 * before
    assert len(checkpoints(tmp_path / "checkpoints")) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_with_its_step(tmp_path: Path, latents: Path, bad: float) -> None:
    batches = flow_batches(latents, batch_size=4, stages=STAGES)
    model = toy_model()

    def objective(model: Any, batch: Mapping[str, Any]) -> LossOutput:
        factor = bad if torch.equal(batch["seeds"], batches(2)["seeds"]) else 1.0
        return LossOutput(loss=sum(p.square().sum() for p in model.parameters()) * factor)

    with pytest.raises(FloatingPointError, match=r"step 2: the loss is (nan|inf); lower optimizer\.lr"):
        fit(model, objective, batches, run_config(), tmp_path, resolved="", title="toy")
    # The last step that was well is kept, and nothing of the bad one.
    last = checkpoints(tmp_path / "checkpoints")[-1]
    assert last.name == "step_00000002"
    assert all(value.isfinite().all() for value in load_safetensors(last / "model.safetensors").values())


def test_a_gradient_that_is_no_number_leaves_the_weights_as_they_were(tmp_path: Path, latents: Path) -> None:
    batches = flow_batches(latents, batch_size=4, stages=STAGES)
    model = toy_model()

    def objective(model: Any, batch: Mapping[str, Any]) -> LossOutput:
        loss = sum(p.square().sum() for p in model.parameters())
        if torch.equal(batch["seeds"], batches(2)["seeds"]):
            # Zero, with an infinite slope.
            loss = loss + (loss * 0).sqrt()
        return LossOutput(loss=loss)

    with pytest.raises(FloatingPointError, match=r"step 2: the norm of the gradient is nan; lower optimizer\.lr"):
        fit(model, objective, batches, run_config(), tmp_path, resolved="", title="toy")
    last = checkpoints(tmp_path / "checkpoints")[-1]
    assert last.name == "step_00000002"
    saved = load_safetensors(last / "model.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())


def test_gradients_are_clipped(tmp_path: Path) -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    seen: list[float] = []
    model.weight.register_post_accumulate_grad_hook(lambda p: seen.append(float(p.grad)))  # type: ignore[arg-type]
    optimizer = OptimizerConfig(lr=1.0, betas=(0.0, 0.0), warmup_steps=0, weight_decay=0.0, grad_clip=1.0)
    config = RunConfig(steps=1, batch_size=1, precision="fp32", log_every=1, optimizer=optimizer)

    def objective(model: Any, batch: Mapping[str, Any]) -> LossOutput:
        return LossOutput(loss=100 * model.weight.sum())

    fit(model, objective, lambda step: {}, config, tmp_path, resolved="", title="toy")
    assert seen == [100.0]
    assert rows(tmp_path)[0]["grad_norm"] == 100.0
    moments = load_safetensors(tmp_path / "checkpoints" / "step_00000001" / "optimizer.safetensors")
    assert moments["0.weight.exp_avg"].item() == pytest.approx(1.0, rel=1e-4)


def parts(width: int = 4, name: Any = "adamw") -> tuple[nn.Module, Ema, OptimizerGroup]:
    """A stepped model with its average and its optimiser."""
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(width, width)]), "head": nn.Linear(width, 2)})
    optimizer = OptimizerGroup(model, OptimizerConfig(name=name))
    sum(p.square().sum() for p in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step(1.0)
    return model, Ema(model, 0.9), optimizer


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        save_checkpoint(tmp_path, step, *parts(), config="")
    assert [path.name for path in checkpoints(tmp_path)] == ["step_00000002", "step_00000010"]


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file can grow past ``limit`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Below the weights, and between the weights and the moments, which are twice as large.
@pytest.mark.parametrize("limit", [1000, 24_000])
def test_a_full_disk_leaves_the_checkpoint_before_whole(tmp_path: Path, limit: int) -> None:
    good = parts(64)
    save_checkpoint(tmp_path, 1, *good, config="")
    before = {path.name: path.read_bytes() for path in (tmp_path / "step_00000001").iterdir()}
    with full_disk(limit), pytest.raises(ValueError, match="cannot be written"):
        save_checkpoint(tmp_path, 2, *parts(64), config="")
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "step_00000001").iterdir()} == before
    target = parts(64)
    assert load_checkpoint(checkpoints(tmp_path)[-1], *target) == 1
    torch.testing.assert_close(target[0].state_dict(), good[0].state_dict())


def test_a_checkpoint_that_a_killed_run_left_half_is_passed_over(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, *parts(), config="")
    half = tmp_path / ".partial_step_00000002"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert [path.name for path in checkpoints(tmp_path)] == ["step_00000001"]
    save_checkpoint(tmp_path, 2, *parts(), config="")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step_00000001", "step_00000002"]


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, *parts(4), config="")
    with pytest.raises(
        ValueError, match=r"step_00000001: .* of another architecture: .*size mismatch.*; use another --out$"
    ):
        load_checkpoint(path, *parts(8))


@pytest.mark.parametrize("names", [("adamw", "muon"), ("muon", "adamw")])
def test_a_checkpoint_of_another_optimiser_is_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    path = save_checkpoint(tmp_path, 1, *parts(name=names[0]), config="")
    with pytest.raises(ValueError, match="the checkpoint is of another optimiser"):
        load_checkpoint(path, *parts(name=names[1]))


def trained_alone(names: str) -> tuple[nn.Module, Ema, OptimizerGroup]:
    """A stepped model of three equal layers, some of which are trained."""
    model = nn.ModuleDict({name: nn.Linear(2, 2) for name in "abc"})
    for name, layer in model.items():
        layer.requires_grad_(name in names)
    optimizer = OptimizerGroup(model, OptimizerConfig())
    sum(p.square().sum() for p in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step(1.0)
    return model, Ema(model, 0.9), optimizer


def test_moments_belong_to_a_name(tmp_path: Path) -> None:
    first, again = trained_alone("ab"), trained_alone("ab")
    path = save_checkpoint(tmp_path, 1, *first, config="")
    moments = load_safetensors(path / "optimizer.safetensors")
    assert {key.removesuffix(".exp_avg") for key in moments if key.endswith(".exp_avg")} == {
        f"0.{layer}.{part}" for layer in "ab" for part in ("weight", "bias")
    }
    load_checkpoint(path, *again)
    for (name, one), other in zip(first[0].named_parameters(), again[0].parameters(), strict=True):
        if name[0] != "c":
            mine, theirs = (run[2].optimizers[0].state[p]["exp_avg"] for run, p in ((first, one), (again, other)))
            assert torch.equal(mine, theirs)
    with pytest.raises(ValueError, match=r"step_00000001: the checkpoint is of another .*\ba\.(weight|bias)"):
        load_checkpoint(path, *trained_alone("b"))
    with pytest.raises(ValueError, match=r"step_00000001: .* another training: c\.bias was frozen .*\(2 such"):
        load_checkpoint(path, *trained_alone("bc"))


def test_a_checkpoint_whose_moments_have_numbers_goes_on(tmp_path: Path) -> None:
    first, again = parts(), parts()
    path = save_checkpoint(tmp_path, 1, *first, config="")
    moments = load_safetensors(path / "optimizer.safetensors")
    # Other matrices, vectors, then matrices of blocks.
    order = ["head.weight", "blocks.0.bias", "head.bias", "blocks.0.weight"]
    numbered = {
        f"0.{order.index(name.removeprefix('0.').rpartition('.')[0])}.{name.rpartition('.')[2]}": value
        for name, value in moments.items()
    }
    assert len(numbered) == len(moments)
    save_safetensors(numbered, path / "optimizer.safetensors")
    load_checkpoint(path, *again)
    for one, other in zip(first[0].parameters(), again[0].parameters(), strict=True):
        assert torch.equal(first[2].optimizers[0].state[one]["exp_avg"], again[2].optimizers[0].state[other]["exp_avg"])


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"])
def test_a_broken_file_of_a_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    path = save_checkpoint(tmp_path, 1, *parts(), config="")
    data = (path / name).read_bytes()
    (path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=f"{name}: .*; delete this checkpoint and run again$"):
        load_checkpoint(path, *parts())
    (path / name).unlink()
    with pytest.raises(ValueError, match=f"{name}: .*; delete this checkpoint and run again$"):
        load_checkpoint(path, *parts())


@pytest.mark.parametrize("content", ["{}", "[]", "5", '{"step": "x", "optimizer": []}', '{"step": 1}'])
def test_a_state_that_is_none_is_one_line(tmp_path: Path, content: str) -> None:
    path = save_checkpoint(tmp_path, 1, *parts(), config="")
    (path / "state.json").write_text(content)
    with pytest.raises(ValueError, match=r"state\.json: broken .*delete this checkpoint and run again"):
        load_checkpoint(path, *parts())


def test_what_a_killed_run_left_half_goes_at_the_next_start(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, *parts(), config="")
    half = tmp_path / ".partial_step_00000007"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    run = Checkpoints(tmp_path, World(device=torch.device("cpu")), config="", steps=9)
    assert run.restore(*parts()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_an_old_checkpoint_that_cannot_be_deleted_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    delete = shutil.rmtree

    def busy(path: Path, ignore_errors: bool = False) -> None:
        # As NFS answers while a file in it is open elsewhere.
        if Path(path).name.endswith("1") and Path(path).exists() and not ignore_errors:
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))
        delete(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", busy)
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, *parts(), config="")
    assert [path.name for path in checkpoints(tmp_path)] == ["step_00000002", "step_00000003"]
    assert "step_00000001: cannot be deleted (Directory not empty)" in caplog.text


def test_a_full_disk_at_the_start_leaves_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    text = "".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(1, 200))
    path.write_text(text)
    with full_disk(100), pytest.raises(OSError, match="File too large"):
        MetricLog(path, 150)
    assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]
    MetricLog(path, 150)
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 151))


def test_two_runs_cannot_work_in_one_folder(tmp_path: Path, latents: Path) -> None:
    with (
        only_run_in(tmp_path),
        pytest.raises(ValueError, match=r"another run is at work in it; wait for its end") as hit,
    ):
        train(tmp_path, latents, run_config())
    assert "\n" not in str(hit.value)
    train(tmp_path, latents, run_config())
    train(tmp_path, latents, run_config())


def test_metrics_are_means_over_steps_and_samples(tmp_path: Path) -> None:
    log = MetricLog(tmp_path / "metrics.jsonl", 0)
    log.add(LossOutput(loss=torch.tensor(1.0), metrics={"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(math.nan)}))
    log.add(LossOutput(loss=torch.tensor(3.0), metrics={"a": torch.tensor([6.0])}))
    assert log.flush(2) == "loss 2.0000"
    log.add(LossOutput(loss=torch.tensor(5.0)))
    log.flush(3)
    assert rows(tmp_path) == [{"step": 2, "loss": 2.0, "a": 3.0}, {"step": 3, "loss": 5.0}]


def test_the_last_validation_stays_in_sight(tmp_path: Path) -> None:
    log = MetricLog(tmp_path / "metrics.jsonl", 0)
    log.add(LossOutput(loss=torch.tensor(1.0), metrics={"validation/loss": torch.tensor(2.0)}))
    assert log.flush(1) == "loss 1.0000, validation 2.0000"
    log.add(LossOutput(loss=torch.tensor(0.5)))
    assert log.flush(2) == "loss 0.5000, validation 2.0000"


def test_rows_after_the_checkpoint_and_half_rows_go(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "loss": 1.0}\n{"step": 4, "loss": 0.5}\n{"step": 6, "lo')
    MetricLog(path, 3)
    assert rows(tmp_path) == [{"step": 2, "loss": 1.0}]


def test_streams_of_random_numbers_differ_by_seed_step_and_use() -> None:
    seeds = {
        step_generator(seed, step, stream).initial_seed()
        for seed in range(3)
        for step in range(2000)
        for stream in range(3)
    }
    assert len(seeds) == 3 * 2000 * 3


def test_no_two_processes_draw_the_same_posterior_noise() -> None:
    # What is drawn, not the seeds: torch takes only a part of these on a CPU.
    generators = [torch.Generator().manual_seed(model_seed(0, step, rank)) for step in range(20) for rank in range(64)]
    assert len({float(torch.randn((), generator=g, dtype=torch.float64)) for g in generators}) == 20 * 64
    assert model_seed(3, 7, 0) == step_generator(3, 7, 2).initial_seed()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"batch_size": -1}, "at least 1"),
        ({"log_every": 0}, "log_every"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"checkpoint_minutes": -1.0}, "checkpoint_minutes"),
    ],
)
def test_bad_run_settings_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunConfig(**{"steps": 1, "batch_size": 1, **change})
