"""Stage 3 (paper section 3.3): pose joins; text 90 %, audio 50 %, pose 25 % of the samples that are fit for them."""

from __future__ import annotations

from omnihuman_train.recipes import stage2
from omnihuman_train.stage_config import StageConfig
from omnihuman_train.stages import Ratios, Stage

RATIOS = Ratios(text=0.9, audio=0.5, pose=0.25, reference=0.9)


def hunyuan_video() -> StageConfig:
    """The 13B backbone, from the result of :func:`omnihuman_train.recipes.stage2.hunyuan_video`."""
    stage = Stage(name="text+audio+pose", steps=20_000, ratios=RATIOS)
    return stage2.after(stage2.hunyuan_video(), stage, "runs/stage2/model")


def small() -> StageConfig:
    """The 0.2B backbone, from the result of :func:`omnihuman_train.recipes.stage2.small`."""
    stage = Stage(name="text+audio+pose", steps=60_000, ratios=RATIOS)
    return stage2.after(stage2.small(), stage, "runs/small-stage2/model")


def debug() -> StageConfig:
    """The shape of the shipped small model, from the result of :func:`omnihuman_train.recipes.stage2.debug`."""
    stage = Stage(name="text+audio+pose", steps=30, ratios=RATIOS)
    return stage2.after(stage2.debug(), stage, "runs/debug-stage2/model")
