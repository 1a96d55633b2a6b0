"""Data that the model or the run cannot take is refused with its fix, before any weight is loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from omnihuman_core.contracts import LatentSpec
from omnihuman_train.config import ParallelConfig
from omnihuman_train.data.manifest import MANIFEST, Bucket
from omnihuman_train.data.pack import fit_size
from omnihuman_train.data_fit import check_sizes
from omnihuman_train.recipes import stage1
from omnihuman_train.stage_config import StageConfig
from omnihuman_train.stage_run import run_stage

from .stage_toys import toy, write_encoded

SPEC = LatentSpec(channels=16, temporal_stride=4, spatial_stride=8)


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError("the model was built")

    monkeypatch.setattr("omnihuman_train.stage_run.start_model", loaded)


@pytest.mark.usefixtures("nothing_is_loaded")
def test_latents_that_patches_do_not_divide_are_refused(tmp_path: Path) -> None:
    data = write_encoded(tmp_path / "encoded", side=40)
    message = "bucket 13x40x40 with latents of 5x5, which patches of 2x2 do not divide; .* --multiple 16` and encode"
    with pytest.raises(ValueError, match=message):
        run_stage(toy(stage1.small(), data, None), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("nothing_is_loaded")
def test_another_frame_rate_than_that_of_the_model_is_refused(tmp_path: Path) -> None:
    data = write_encoded(tmp_path / "encoded")
    config = toy(stage1.small(), data, None)
    slow = replace(config, generation=replace(config.generation, fps=16.0))
    message = (
        "8 samples of .* another frame rate than generation.fps, 16; .* with 25: pack .* --fps 16` .* set generation"
    )
    with pytest.raises(ValueError, match=message):
        run_stage(slow, tmp_path / "out")
    # One sample among others is enough.
    lines = (data / MANIFEST).read_text().splitlines()
    lines[5] = json.dumps({**json.loads(lines[5]), "fps": 24.0})
    (data / MANIFEST).write_text("\n".join(lines) + "\n")
    with pytest.raises(
        ValueError, match=rf"1 samples of .* generation.fps, 25; .* {json.loads(lines[5])['key']} .* 24"
    ):
        run_stage(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("name", "field", "value", "of_the_data"),
    [
        ("backbone", "latent_channels", 24, 16),
        ("pose_encoder", "temporal_stride", 8, 4),
        ("pose_encoder", "spatial_stride", 16, 8),
    ],
)
def test_latents_that_the_model_does_not_take_are_refused(
    tmp_path: Path, name: str, field: str, value: int, of_the_data: int
) -> None:
    config = toy(stage1.small(), write_encoded(tmp_path / "encoded"), None)
    chosen = getattr(config.model, name)
    changed = replace(chosen, changes={**chosen.changes, field: value})
    config = replace(config, model=replace(config.model, **{name: changed}))
    with pytest.raises(
        ValueError, match=rf"have {field} {of_the_data}, but model.{name} \(.*\) has {value}; set {field}"
    ):
        run_stage(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def large(sequence: int) -> StageConfig:
    recipe = stage1.hunyuan_video()
    return replace(recipe, run=replace(recipe.run, parallel=ParallelConfig(sequence=sequence)))


def test_tokens_that_processes_cannot_share_are_refused() -> None:
    square = Bucket(129, *fit_size(1080, 1080, 480 * 832, 16))
    wide = Bucket(129, 480, 832)
    assert square == (129, 624, 624)
    check_sizes(large(1), SPEC, [wide, square])
    check_sizes(large(2), SPEC, [wide])
    message = "bucket 129x624x624 with 1521 tokens a latent frame, which run.parallel.sequence = 2 .* --multiple 32`"
    with pytest.raises(ValueError, match=message):
        check_sizes(large(2), SPEC, [wide, square])


@pytest.mark.parametrize(("sequence", "multiple"), [(2, 32), (3, 48), (4, 32), (8, 64)])
def test_the_multiple_that_is_named_fits_every_clip(sequence: int, multiple: int) -> None:
    with pytest.raises(ValueError, match=f"--multiple {multiple}`"):
        check_sizes(large(sequence), SPEC, [Bucket(129, 208, 208)])
    shapes = [(1080, 1080), (1080, 1920), (1920, 1080), (720, 1000), (431, 999), (2000, 500)]
    check_sizes(large(sequence), SPEC, [Bucket(129, *fit_size(*shape, 480 * 832, multiple)) for shape in shapes])
