"""Sizes of the mesh, rows of a rank, and what is refused before any process starts; no processes here."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from omnihuman_core.contracts import LossOutput
from omnihuman_train.config import FlowConfig, ParallelConfig, RunConfig
from omnihuman_train.distributed.exchange import exchange
from omnihuman_train.distributed.mesh import World, join, processes
from omnihuman_train.objective import FlowObjective
from omnihuman_train.recipes.debug import debug
from omnihuman_train.runs import check_processes
from omnihuman_train.trainer import fit
from tests.train.models import flow_batches, narrow_mmdit, toy_model

from .jobs import STAGES
from .ranks import Server

ALONE = World(device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ({}, 1, (1, 1, 1)),
        ({}, 8, (1, 8, 1)),
        ({"dp_replicate": 2}, 8, (2, 4, 1)),
        ({"dp_replicate": 2, "sequence": 2}, 8, (2, 2, 2)),
        ({"dp_shard": 4, "sequence": 2}, 8, (1, 4, 2)),
    ],
)
def test_sizes_multiply_to_the_processes(sizes: dict[str, int], count: int, expected: tuple[int, int, int]) -> None:
    assert ParallelConfig(**sizes).sizes(count) == expected


@pytest.mark.parametrize(
    ("sizes", "count", "message"),
    [
        ({"dp_shard": 4}, 1, r"dp_shard 4 x sequence 1 are 4 processes, but there are 1; .*--nproc-per-node=4"),
        ({"dp_replicate": 3}, 8, r"dp_replicate 3 x dp_shard 2 x sequence 1 are 6 processes, but there are 8"),
        ({"sequence": 4}, 2, r"sequence 4 are 4 processes, but there are 2"),
    ],
)
def test_other_sizes_are_one_clear_line(sizes: dict[str, int], count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParallelConfig(**sizes).sizes(count)


@pytest.mark.parametrize("name", ["dp_shard", "dp_replicate", "sequence"])
def test_a_size_is_at_least_one(name: str) -> None:
    with pytest.raises(ValueError, match=f"parallel.{name} must be at least 1, got 0"):
        ParallelConfig(**{name: 0})


def test_one_process_opens_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = join(ParallelConfig(), "cpu")
    assert (world.main, world.data_rank, world.data_size, world.weights) == (True, 0, 1, None)
    assert not torch.distributed.is_initialized()
    assert processes() == 1


def test_every_group_waits_as_long_as_the_recipe_says(ranks: Server) -> None:
    assert ranks.run(4, "timeouts", minutes=2.0, dp_replicate=2, sequence=2) == [""] * 4


def test_ranks_of_a_sequence_group_share_their_rows() -> None:
    places = [World(device=torch.device("cpu"), rank=rank, size=8, sequence=2) for rank in range(8)]
    assert [place.data_rank for place in places] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert {place.data_size for place in places} == {4}
    assert [place.main for place in places] == [True] + [False] * 7


@pytest.mark.parametrize("step", [2, 11])
def test_the_parts_of_a_batch_are_its_rows(latents: Path, step: int) -> None:
    whole = flow_batches(latents, batch_size=8, stages=STAGES)
    parts = [whole.part(rank, 4)(step) for rank in range(4)]
    batch = whole(step)
    for key, value in batch.items():
        if key == "keep":
            for name, kept in value.items():
                assert torch.equal(torch.cat([part["keep"][name] for part in parts]), kept)
        elif key == "pose_maps" and value is not None:
            assert torch.equal(torch.cat([part[key] for part in parts if part[key] is not None]), value)
        elif isinstance(value, torch.Tensor):
            assert torch.equal(torch.cat([part[key] for part in parts]), value), key
        else:
            assert {part[key] for part in parts} == {value}, key


def test_a_batch_that_does_not_divide_is_refused(latents: Path) -> None:
    with pytest.raises(ValueError, match=r"batch_size 8 must be a multiple of data processes x run.accumulate = 3"):
        flow_batches(latents, batch_size=8).part(0, 3)


@pytest.mark.parametrize(
    ("count", "part", "message"),
    [
        ("2", "render", "part 'render' is the work of one process; run --parts render without torchrun"),
        ("3", "backbone", "part 'backbone': batch_size 4 must be a multiple of data processes x accumulate = 3"),
    ],
)
def test_what_several_processes_cannot_do_is_said_before_any_work(
    monkeypatch: pytest.MonkeyPatch, count: str, part: str, message: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", count)
    with pytest.raises(ValueError, match=message):
        check_processes(debug(), [part])


def test_accumulation_divides_the_batch() -> None:
    recipe = debug()
    check_processes(replace(recipe, run=replace(recipe.run, accumulate=2)), ["backbone"])
    with pytest.raises(ValueError, match="= 3"):
        check_processes(replace(recipe, run=replace(recipe.run, accumulate=3)), ["backbone"])
    with pytest.raises(ValueError, match="accumulate must be at least 1, got 0"):
        RunConfig(steps=1, batch_size=1, accumulate=0)


def test_accumulation_wants_a_source_for_each_part(tmp_path: Path, latents: Path) -> None:
    config = RunConfig(steps=1, batch_size=8, accumulate=2)
    batches, objective = flow_batches(latents), FlowObjective(FlowConfig())
    with pytest.raises(ValueError, match="run.accumulate is 2, but there are 1 sources"):
        fit(toy_model(), objective, batches, config, tmp_path, resolved="", title="toy")


def test_outputs_of_parts_are_those_of_the_whole() -> None:
    nan = torch.tensor(float("nan"))
    outputs = [
        LossOutput(loss=torch.tensor(1.0), metrics={"a": torch.tensor([1.0, 2.0]), "s": torch.tensor(4.0), "n": nan}),
        LossOutput(loss=torch.tensor(3.0), metrics={"b": torch.tensor([5.0]), "a": torch.tensor([3.0]), "s": nan}),
    ]
    batch = {"seeds": torch.zeros(2), "start": 0}
    told = exchange([outputs, outputs[::-1]], [batch, batch], ALONE)
    output, other = told.outputs
    assert output.loss.item() == 2.0
    assert output.metrics["a"].tolist() == [1.0, 2.0, 3.0]
    assert output.metrics["b"].tolist() == [5.0]
    assert output.metrics["s"].item() == 4.0
    assert output.metrics["n"].isnan()
    assert told.samples == 4
    assert other.metrics["a"].tolist() == [3.0, 1.0, 2.0]


def test_a_map_of_nobody_changes_no_loss_and_gives_gradients_of_zero(latents: Path) -> None:
    model, objective = toy_model(narrow_mmdit()), FlowObjective(FlowConfig())
    torch.nn.init.normal_(model.backbone.final_layer.proj.weight, std=0.05)
    batch = flow_batches(latents, batch_size=8, stages=STAGES)(0)
    assert batch["pose_maps"] is None
    frames = batch["audio"].shape[1]
    plain, padded = (
        objective(model, {**batch, "pose_maps": maps}).loss for maps in (None, torch.ones(1, 3, frames, 8, 8))
    )
    assert torch.equal(plain, padded)
    plain.backward()
    assert model.pose_encoder.projection.weight.grad is None
    padded.backward()
    assert not model.pose_encoder.projection.weight.grad.any()
