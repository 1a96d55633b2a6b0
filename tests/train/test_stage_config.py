"""Recipes of the three stages: the paper's ratios, order and starts."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from omnihuman_core.config import from_table, override, to_toml
from omnihuman_core.mmdit import MMDiT
from omnihuman_train.init import InitConfig
from omnihuman_train.lora import LoraSettings
from omnihuman_train.recipes import stage1, stage2, stage3
from omnihuman_train.stage_config import (
    PARTS,
    ComponentConfig,
    StageConfig,
    check_start,
    shortened,
    write_record,
)
from omnihuman_train.stages import Ratios, Stage

RECIPES = {
    "hunyuan_video": (stage1.hunyuan_video, stage2.hunyuan_video, stage3.hunyuan_video),
    "small": (stage1.small, stage2.small, stage3.small),
}
EACH = [recipe for recipes in RECIPES.values() for recipe in recipes]


@pytest.mark.parametrize("recipes", RECIPES.values(), ids=list(RECIPES))
def test_the_paper_s_ratios_in_the_paper_s_order(recipes: tuple[Callable[[], StageConfig], ...]) -> None:
    configs = [recipe() for recipe in recipes]
    ratios = [(c.stage.ratios.text, c.stage.ratios.audio, c.stage.ratios.pose) for c in configs]
    assert ratios == [(0.9, 0.0, 0.0), (0.9, 0.5, 0.0), (0.9, 0.5, 0.25)]
    for before, after in zip(configs, configs[1:], strict=False):
        assert after.stages[:-1] == before.stages
        assert after.start is not None
        # All else is what it was: a stage changes what is kept, not what is trained.
        same = replace(before, start=after.start, stages=after.stages, run=after.run)
        assert same == after


@pytest.mark.parametrize("recipe", EACH)
def test_a_recipe_is_what_its_file_says(recipe: Callable[[], StageConfig]) -> None:
    config = recipe()
    assert from_table(StageConfig, tomllib.loads(to_toml(config))) == config
    resolved = {name: chosen.resolve(kind) for name in PARTS for kind, chosen in [config.model.component(name)]}
    backbone = resolved["backbone"]
    assert resolved["audio_encoder"].token_dim == backbone.audio_dim
    assert resolved["pose_encoder"].out_channels == backbone.pose_channels
    assert resolved["text_encoder"].token_dim == backbone.text_dim
    assert resolved["text_encoder"].pooled_dim == backbone.pooled_dim


def test_the_large_shape_is_what_init_makes_of_the_public_weights() -> None:
    backbone = stage1.hunyuan_video().model.backbone.resolve("backbone")
    init = InitConfig()
    assert (backbone.audio_dim, backbone.pose_channels) == (init.audio_dim, init.pose_channels)
    assert backbone.audio_blocks == tuple(range(60))
    assert backbone.segment_embedding is init.segment_embedding is True
    # Decision 33: the velocities of training are those without guidance; converted for inference alone it is 6.
    assert backbone.embedded_guidance == init.embedded_guidance == 1.0
    assert MMDiT.presets["hunyuan_video"]().embedded_guidance == 6.0
    assert stage1.hunyuan_video().model.audio_encoder.preset == init.audio_encoder


def test_a_stage_starts_from_the_one_before_or_not_at_all(tmp_path: Path) -> None:
    second = replace(stage2.small(), start=str(tmp_path))
    with pytest.raises(ValueError, match=r"has gone through no stage, but stage 'text\+audio' follows 'text' \(text\)"):
        check_start(second)
    write_record(tmp_path, stage1.small().stages)
    check_start(second)
    third = replace(stage3.small(), start=str(tmp_path))
    with pytest.raises(ValueError, match=r"through 'text' \(text\), but .* section 3\.3 and table 1, IPA"):
        check_start(third)
    # Twice the same stage is as wrong as none.
    write_record(tmp_path, second.stages)
    with pytest.raises(ValueError, match="has gone through"):
        check_start(second)
    check_start(third)


@pytest.mark.parametrize(
    ("recipe", "what"), [(stage2.small, r"train 'text' \(text\) first"), (stage1.hunyuan_video, "omnihuman-train init")]
)
def test_a_start_that_does_not_exist_is_named(recipe: Callable[[], StageConfig], what: str) -> None:
    with pytest.raises(ValueError, match=f"start: nowhere does not exist; .*{what}.*, or name it with --set start="):
        check_start(replace(recipe(), start="nowhere"))


def test_one_field_is_the_size_of_a_batch() -> None:
    for assignments in (["run.batch_size=32"], ["stream.batch.batch_size=32", "run.batch_size=32"]):
        config = override(stage1.small(), assignments)
        assert (config.run.batch_size, config.batches().batch.batch_size) == (32, 32)
    with pytest.raises(ValueError, match="batch_size is 32, but run.batch_size is 64; set run.batch_size alone"):
        override(stage1.small(), ["stream.batch.batch_size=32"])
    with pytest.raises(ValueError, match="batch of 64 samples is no multiple of stream.batch.multiple, 7"):
        override(stage1.small(), ["stream.batch.multiple=7"])
    budget = override(stage1.small(), ["stream.batch.token_budget=9000", "stream.batch.multiple=2"])
    assert budget.batches() == budget.stream


def test_low_rank_updates_are_set_by_one_field() -> None:
    config = override(stage2.small(), ["lora.rank=8"])
    assert config.lora == LoraSettings(rank=8)


def test_an_initialised_base_has_gone_through_no_stage(tmp_path: Path) -> None:
    check_start(replace(stage1.hunyuan_video(), start=str(tmp_path)))
    check_start(stage1.small())


def test_a_later_stage_needs_a_start() -> None:
    with pytest.raises(ValueError, match=r"'text\+audio' has no start.* result of the one before \(paper section 3\.3"):
        replace(stage2.small(), start=None)


def test_a_broken_order_or_ratio_is_refused_with_the_paper() -> None:
    config = stage3.small()
    pose_first = Stage(name="pose", steps=5, ratios=Ratios(audio=0.0, pose=0.25))
    run = replace(config.run, steps=5)
    with pytest.raises(ValueError, match=r"paper section 3\.3 and table 1, IPA"):
        replace(config, stages=(*stage1.small().stages, pose_first), run=run)
    often = Stage(name="A < P", steps=5, ratios=Ratios(audio=0.25, pose=0.5))
    with pytest.raises(ValueError, match=r"principle 2\): 0\.5 > 0\.25"):
        replace(config, stages=(*stage2.small().stages, often), run=run)


def test_steps_are_those_of_the_stage() -> None:
    with pytest.raises(ValueError, match=r"run.steps is 7, but stage 'text' has 100000"):
        override(stage1.small(), ["run.steps=7"])
    with pytest.raises(ValueError, match="or cut the run short with --trial"):
        override(stage1.small(), ["run.steps=7"])
    assert shortened(stage1.small(), 3).run.steps == 3
    with pytest.raises(ValueError, match="--trial must be at least 1"):
        shortened(stage1.small(), 0)


@pytest.mark.parametrize(
    ("component", "message"),
    [
        (ComponentConfig(plugin="mmdit", preset="huge"), "preset 'huge' of 'mmdit' does not exist"),
        (ComponentConfig(plugin="mmdit", preset="small", changes={"depth": 3}), "mmdit: .*unknown key 'depth'"),
        (ComponentConfig(plugin="mmdit", preset="small", changes={"num_heads": "12"}), "num_heads: must be int"),
        (ComponentConfig(plugin="mmdit", preset="small", changes={"num_heads": 7}), "must be a multiple of num_heads"),
        (ComponentConfig(plugin="unet", preset="small"), "unet"),
    ],
)
def test_a_component_that_cannot_be_is_named(component: ComponentConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        component.resolve("backbone")
