"""Recipes that are wrong in one way each, for the command line."""

from __future__ import annotations

from omnihuman_train.config import TrainConfig
from omnihuman_train.recipes.debug import debug
from omnihuman_train.stages import Ratios, Stage, check_stages

NOT_A_FUNCTION = 3


def no_recipe() -> dict[str, int]:
    return {"steps": 3}


def pose_first() -> TrainConfig:
    check_stages((Stage(name="IPA", steps=5, ratios=Ratios(audio=0.0, pose=0.25)),))
    return debug()
