"""Omni-conditions training in stages (paper section 3.3).

Principle 1: a task with a stronger condition may use the data of tasks with weaker conditions; a sample trains what it
is fit for (``has_audio``, ``has_pose``). Principle 2: the stronger the condition, the lower the ratio at which it is
kept. Conditions from weak to strong: text, audio, pose. They join in that order: pose before audio costs lip sync
(paper, table 1, "IPA").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

STRENGTH = ("text", "audio", "pose")


@dataclass(frozen=True, kw_only=True)
class Ratios:
    """Probability with which a sample keeps each condition; draws are independent per sample.

    Attributes:
        text: Keep ratio of the text (paper: 0.9).
        audio: Keep ratio of the audio (paper: 0.5 in the last stage).
        pose: Keep ratio of the pose (paper: 0.25 in the last stage).
        reference: Keep ratio of the reference picture.
    """

    text: float = 0.9
    audio: float = 0.5
    pose: float = 0.25
    reference: float = 0.9

    def __post_init__(self) -> None:
        for name in ("text", "audio", "pose", "reference"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"ratios.{name} must lie in [0, 1], got {value}")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage: its conditions are kept with ``ratios`` for ``steps`` optimiser steps; a ratio of 0 drops one.

    Attributes:
        name: What messages call the stage.
        steps: Optimiser steps, at least 1.
        ratios: Keep ratio of each condition.
        pictures: Train on single pictures, the first latent frame of a clip, in place of segments; text alone then.
            A picture is a ninth or less of a segment's tokens, so words are learnt at little cost (the paper starts
            from a model that was trained on text and pictures before).
        batch_size: Samples per step in this stage; None takes that of the run.
    """

    name: str
    steps: int
    ratios: Ratios
    pictures: bool = False
    batch_size: int | None = None

    @property
    def active(self) -> tuple[str, ...]:
        """Conditions that the stage trains, weak to strong."""
        return tuple(name for name in STRENGTH if getattr(self.ratios, name) > 0)


def check_stages(stages: Sequence[Stage]) -> None:
    """Check the order of conditions and ratios.

    Raises:
        ValueError: a stage has no steps, a stronger condition joins before a weaker one, a later stage drops a
            condition again, or a stronger condition is kept more often than a weaker one.
    """
    if not stages:
        raise ValueError("stages must name at least one stage")
    before: tuple[str, ...] = ()
    for stage in stages:
        if stage.steps < 1:
            raise ValueError(f"stage {stage.name!r}: steps must be at least 1, got {stage.steps}")
        if stage.batch_size is not None and stage.batch_size < 1:
            raise ValueError(f"stage {stage.name!r}: batch_size must be at least 1, got {stage.batch_size}")
        active = stage.active
        if stage.pictures and active != ("text",):
            raise ValueError(f"stage {stage.name!r}: a single picture has text alone, but it trains {list(active)}")
        if active != STRENGTH[: len(active)]:
            raise ValueError(
                f"stage {stage.name!r} trains {list(active)}: a stronger condition joins only after every weaker one "
                f"(text, then audio, then pose; paper section 3.3 and table 1, IPA)"
            )
        if len(active) < len(before):
            raise ValueError(
                f"stage {stage.name!r} drops {sorted(set(before) - set(active))}, which was trained before"
            )
        for weak, strong in zip(active, active[1:], strict=False):
            if getattr(stage.ratios, strong) > getattr(stage.ratios, weak):
                raise ValueError(
                    f"stage {stage.name!r}: {strong} is the stronger condition, so its ratio must not exceed that of "
                    f"{weak} (paper section 3.3, principle 2): {getattr(stage.ratios, strong)} > "
                    f"{getattr(stage.ratios, weak)}"
                )
        before = active


def stage_at(stages: Sequence[Stage], step: int) -> Stage:
    """The stage that optimiser step ``step`` (from 0) belongs to; the last stage past the end."""
    for stage in stages:
        if step < stage.steps:
            return stage
        step -= stage.steps
    return stages[-1]
