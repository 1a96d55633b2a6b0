"""Shards: whole or not at all, resumable, idempotent; a broken one is named."""

from pathlib import Path

import pytest
import torch

from omnihuman_train.data.cached import Sample, Shards, bucket_folders, shard_paths, write_shards


class Maker:
    """Makes sample ``i``; fails at ``fail``."""

    def __init__(self, fail: int | None = None) -> None:
        self.fail, self.made = fail, list[int]()

    def __call__(self, index: int) -> Sample:
        if index == self.fail:
            raise RuntimeError("power cut")
        self.made.append(index)
        return {"x": torch.full((2, 3), index), "flag": torch.tensor(index % 2 == 0), "caption": f"é {index}"}


def nothing(count: int) -> None:
    pass


def test_samples_come_back_in_order(tmp_path: Path) -> None:
    seen: list[int] = []
    write_shards(tmp_path / "a" / "b", Maker(), 7, size=3, progress=seen.append)
    paths = shard_paths(tmp_path / "a" / "b")
    assert [path.name for path in paths] == [
        "000000-000003.safetensors",
        "000003-000006.safetensors",
        "000006-000007.safetensors",
    ]
    shards = Shards(paths)
    assert len(shards) == 7
    assert shards.tensors["x"][:, 0, 0].tolist() == list(range(7))
    assert shards.tensors["flag"].dtype == torch.bool
    assert shards.texts["caption"] == [f"é {i}" for i in range(7)]
    assert seen == [3, 3, 1]
    assert list(Shards(paths, ("flag",)).tensors) == ["flag"]


def test_a_stopped_writer_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="power cut"):
        write_shards(tmp_path, Maker(fail=4), 6, size=3, progress=nothing)
    assert [path.name for path in tmp_path.iterdir()] == ["000000-000003.safetensors"]
    first = (tmp_path / "000000-000003.safetensors").read_bytes()
    again = Maker()
    write_shards(tmp_path, again, 6, size=3, progress=nothing)
    assert again.made == [3, 4, 5]
    assert (tmp_path / "000000-000003.safetensors").read_bytes() == first
    third = Maker()
    write_shards(tmp_path, third, 6, size=3, progress=nothing)
    assert third.made == []


def test_a_shard_does_not_depend_on_when_it_was_made(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shards(tmp_path / name, Maker(), 3, size=3, progress=nothing)
    a, b = (shard_paths(tmp_path / name)[0].read_bytes() for name in ("a", "b"))
    assert a == b


@pytest.mark.parametrize("damage", ["cut", "empty", "noise"])
def test_a_broken_shard_is_named(tmp_path: Path, damage: str) -> None:
    write_shards(tmp_path, Maker(), 6, size=3, progress=nothing)
    broken = shard_paths(tmp_path)[1]
    data = broken.read_bytes()
    broken.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "noise": b"\xff" * len(data)}[damage])
    with pytest.raises(ValueError, match=r"000003-000006\.safetensors: broken shard"):
        Shards(shard_paths(tmp_path))


def test_a_shard_without_the_wanted_tensor_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, Maker(), 3, size=3, progress=nothing)
    with pytest.raises(ValueError, match=r"000000-000003\.safetensors: broken shard.*video"):
        Shards(shard_paths(tmp_path), ("video",))


def test_shards_of_two_recipes_do_not_mix(tmp_path: Path) -> None:
    write_shards(tmp_path, Maker(), 3, size=3, progress=nothing)

    def longer(index: int) -> Sample:
        return {**Maker()(index), "x": torch.zeros(5, 3, dtype=torch.long)}

    write_shards(tmp_path, longer, 6, size=3, progress=nothing)
    with pytest.raises(
        ValueError, match=r"000003-000006\.safetensors: not of the same recipe.*x \(5, 3\), not \(2, 3\)"
    ):
        Shards(shard_paths(tmp_path))


def test_missing_shards_and_buckets_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="render or encode the clips first"):
        shard_paths(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="render or encode the clips first"):
        bucket_folders(tmp_path / "nowhere")
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(ValueError, match="no size buckets"):
        bucket_folders(tmp_path)
