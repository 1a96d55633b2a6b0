"""Stage 2 (paper section 3.3): audio joins text and reference; pose is dropped."""

from __future__ import annotations

from dataclasses import replace

from omnihuman_train.recipes import stage1
from omnihuman_train.stage_config import StageConfig
from omnihuman_train.stages import Ratios, Stage

RATIOS = Ratios(text=0.9, audio=0.5, pose=0.0, reference=0.9)


def hunyuan_video() -> StageConfig:
    """The 13B backbone, from the result of :func:`omnihuman_train.recipes.stage1.hunyuan_video`."""
    return after(stage1.hunyuan_video(), Stage(name="text+audio", steps=20_000, ratios=RATIOS), "runs/stage1/model")


def small() -> StageConfig:
    """The 0.2B backbone, from the result of :func:`omnihuman_train.recipes.stage1.small`."""
    return after(stage1.small(), Stage(name="text+audio", steps=60_000, ratios=RATIOS), "runs/small-stage1/model")


def debug() -> StageConfig:
    """The shape of the shipped small model, from the result of :func:`omnihuman_train.recipes.stage1.debug`."""
    return after(stage1.debug(), Stage(name="text+audio", steps=30, ratios=RATIOS), "runs/debug-stage1/model")


def after(before: StageConfig, stage: Stage, start: str) -> StageConfig:
    """The run of ``stage``, which starts from the model that the run ``before`` left in ``start``."""
    run = replace(before.run, steps=stage.steps)
    return replace(before, start=start, stages=(*before.stages, stage), run=run)
