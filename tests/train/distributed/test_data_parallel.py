"""Two and four processes against one: losses, weights, averages, accumulation."""

from pathlib import Path
from typing import Any

import pytest

from .curves import check_equal, rows
from .ranks import Server


def test_the_run_learns(one: Path) -> None:
    losses = [row["loss"] for row in rows(one)]
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])


def test_two_processes_give_the_curve_and_the_weights_of_one(one: Path, two: Path) -> None:
    check_equal(two, one)


def test_four_processes_give_the_curve_and_the_weights_of_one(
    tmp_path: Path, latents: Path, ranks: Server, one: Path
) -> None:
    assert ranks.run(4, "train", out=str(tmp_path), latents=str(latents)) == [""] * 4
    check_equal(tmp_path, one)


@pytest.mark.parametrize(("world", "changes"), [(2, {"sequence": 2}), (4, {"sequence": 2, "dp_shard": 2})])
def test_processes_that_share_samples_give_the_curve_and_the_weights_of_one(
    tmp_path: Path, latents: Path, ranks: Server, one: Path, world: int, changes: dict[str, Any]
) -> None:
    assert ranks.run(world, "train", out=str(tmp_path), latents=str(latents), **changes) == [""] * world
    check_equal(tmp_path, one)


def test_parts_one_after_the_other_are_one_big_batch(tmp_path: Path, latents: Path, ranks: Server, one: Path) -> None:
    assert ranks.run(1, "train", out=str(tmp_path), latents=str(latents), accumulate=4) == [""]
    check_equal(tmp_path, one)


def test_muon_updates_sharded_matrices_as_whole_ones(tmp_path: Path, latents: Path, ranks: Server) -> None:
    for world in (1, 2):
        folder = str(tmp_path / str(world))
        ended = ranks.run(world, "train", out=folder, latents=str(latents), name="muon", stop=6)
        assert ended == ["Stop: "] * world
    mine, theirs = ([row["loss"] for row in rows(tmp_path / world)] for world in ("2", "1"))
    assert len(mine) == 6
    assert mine == pytest.approx(theirs, abs=2e-5)
