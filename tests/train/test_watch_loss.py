"""The loss on held-out samples: what is measured, what it leaves alone, and what it refuses."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from omnihuman_core.checkpoint import load_safetensors
from omnihuman_train.data.manifest import MANIFEST
from omnihuman_train.distributed.mesh import World
from omnihuman_train.held_out import held_out
from omnihuman_train.objective import FlowObjective
from omnihuman_train.recipes import stage1, stage3
from omnihuman_train.stage_config import StageConfig
from omnihuman_train.stage_run import run_stage, start_model, streams
from omnihuman_train.watch import WatchConfig
from omnihuman_train.watch_loss import SIGMAS

from .stage_toys import toy, write_encoded

ALONE = World(device=torch.device("cpu"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    return write_encoded(folder / "encoded"), write_encoded(folder / "held", first=8)


def config_of(data: Path, held: Path | None, **changes: Any) -> StageConfig:
    watch = {"validation_every": 3, "validation_seeds": (), "gpu": False} if held else {}
    config = toy(stage1.small(), data, None, **changes)
    return replace(config, watch=WatchConfig(validation_data=held and str(held), **watch))


def all_stages(data: Path, held: Path) -> StageConfig:
    """The last stage without the ones before: what is looked at here does not care."""
    stage = replace(stage3.small().stages[-1], steps=3)
    return config_of(data, held, stages=(stage,))


def test_a_run_reports_its_loss_on_held_out_samples_and_is_not_changed_by_it(
    data: tuple[Path, Path], tmp_path: Path
) -> None:
    run_stage(config_of(*data), tmp_path / "watched")
    run_stage(config_of(data[0], None), tmp_path / "alone")
    rows = [json.loads(line) for line in (tmp_path / "watched" / "metrics.jsonl").read_text().splitlines()]
    names = {"loss", "text", *(f"sigma{quarter}" for quarter in range(4))}
    found = {name: value for name, value in rows[-1].items() if name.startswith("validation")}
    assert found.keys() == {f"{of}/{name}" for of in ("validation", "validation_ema") for name in names}
    assert not [name for row in rows[:-1] for name in row if name.startswith("validation")]
    mine, theirs = (
        load_safetensors(tmp_path / run / "checkpoints" / "step_00000003" / "model.safetensors")
        for run in ("watched", "alone")
    )
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    assert not (tmp_path / "watched" / "validation").exists()
    # The same by hand, from the weights and the averages of the checkpoint.
    for of, file in (("validation", "model"), ("validation_ema", "ema")):
        config = config_of(*data)
        model = start_model(config, ALONE).eval()
        model.load_state_dict(
            load_safetensors(tmp_path / "watched" / "checkpoints" / "step_00000003" / f"{file}.safetensors"),
            strict=False,
        )
        (part,) = held_out(config, lambda other: streams(other, ALONE), streams(config, ALONE)[0])
        batch = part.read(0)
        assert batch["keep"]["text"].all()
        assert not batch["keep"]["audio"].any()
        with torch.no_grad():
            losses = [
                FlowObjective(config.flow).sample_losses(model, {**batch, "sigma": torch.full((4,), sigma)})[0].mean()
                for sigma in SIGMAS
            ]
        assert [found[f"{of}/sigma{quarter}"] for quarter in range(4)] == pytest.approx([float(x) for x in losses])
        assert found[f"{of}/loss"] == found[f"{of}/text"] == pytest.approx(float(torch.stack(losses).mean()))


def test_sets_of_conditions_are_compared_on_samples_that_have_them(data: tuple[Path, Path], tmp_path: Path) -> None:
    config = all_stages(*data)
    (part,) = held_out(config, lambda other: streams(other, ALONE), streams(config, ALONE)[0])
    batch = part.read(0)
    assert all(batch["keep"][name].all() for name in ("text", "audio", "reference"))
    # Every other sample has a pose that can be trusted.
    posed = {record.key for record in part.data.records if record.has_pose}
    assert batch["keep"]["pose"].tolist() == [key in posed for key in batch["key"]]
    assert 0 < batch["keep"]["pose"].sum() < 4
    run_stage(config, tmp_path / "out")
    row = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    sets = [row[f"validation/{name}"] for name in ("text", "text+audio", "text+audio+pose")]
    assert len({round(value, 9) for value in sets}) == 3


def test_what_is_measured_does_not_depend_on_the_seed_of_the_run(data: tuple[Path, Path]) -> None:
    batches = []
    for seed in (0, 5):
        config = config_of(*data)
        config = replace(config, run=replace(config.run, seed=seed))
        (part,) = held_out(config, lambda other: streams(other, ALONE), streams(config, ALONE)[0])
        batches.append(part.read(0))
    assert batches[0]["key"] == batches[1]["key"]
    assert batches[0]["seeds"].equal(batches[1]["seeds"])


def test_recordings_on_both_sides_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, held = write_encoded(tmp_path / "encoded"), write_encoded(tmp_path / "held", first=8)
    path = held / MANIFEST
    path.write_text(path.read_text().replace('"noise/9"', '"noise/1"'))
    run_stage(config_of(data, held), tmp_path / "out")
    said = "watch.validation_data: 1 recordings are trained on too, the first is noise/1;"
    assert said in capsys.readouterr().out


def other_rate(held: Path) -> None:
    path = held / MANIFEST
    path.write_text(path.read_text().replace('"fps":25.0', '"fps":30.0'))


def no_texts(held: Path) -> None:
    path = held / MANIFEST
    path.write_text(path.read_text().replace('"has_text":true', '"has_text":false'))


@pytest.mark.parametrize(
    ("first", "damage", "message"),
    [
        (4, None, r"watch\.validation_data: 4 samples of .*held are in .*encoded too, the first is \w{40} \(noise/"),
        (8, other_rate, r"watch\.validation_data: 8 samples of .*held have another frame rate than generation\.fps"),
        (8, no_texts, r"watch\.validation_data: none of the 4 samples of .*held that the loss is measured on has text"),
    ],
)
def test_held_out_data_that_cannot_be_is_one_line(
    first: int, damage: Callable[[Path], None] | None, message: str, tmp_path: Path
) -> None:
    data, held = write_encoded(tmp_path / "encoded"), write_encoded(tmp_path / "held", first=first)
    if damage is not None:
        damage(held)
    with pytest.raises(ValueError, match=message) as caught:
        run_stage(config_of(data, held), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_held_out_data_needs_an_interval(data: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"watch\.validation_data is set, but watch\.validation_every is 0"):
        WatchConfig(validation_data="x")
    with pytest.raises(ValueError, match=r"watch\.validation_data: .*nowhere .*--set watch\.validation_data=DIR"):
        run_stage(config_of(data[0], tmp_path / "nowhere"), tmp_path / "out")
