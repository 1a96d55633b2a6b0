"""Order of the conditions and their ratios (paper section 3.3)."""

from dataclasses import replace

import pytest

from omnihuman_train.recipes.debug import debug
from omnihuman_train.recipes.tiny import tiny
from omnihuman_train.stages import Ratios, Stage, check_stages, stage_at


def stage(name: str, audio: float, pose: float, *, text: float = 0.9, steps: int = 5) -> Stage:
    return Stage(name=name, steps=steps, ratios=Ratios(text=text, audio=audio, pose=pose))


def test_the_papers_order_and_ratios_pass() -> None:
    check_stages([stage("1", 0, 0), stage("2", 0.5, 0), stage("3", 0.5, 0.25)])
    # Equal ratios do not break the principle: the stronger one is not kept more often.
    check_stages([stage("all", 0.5, 0.5, text=0.5)])


@pytest.mark.parametrize("recipe", [tiny, debug])
def test_recipes_end_with_the_papers_ratios(recipe: object) -> None:
    stages = recipe().stages  # type: ignore[operator]
    assert [s.active for s in stages] == [("text",), ("text", "audio"), ("text", "audio", "pose")]
    last = stages[-1].ratios
    assert (last.text, last.audio, last.pose) == (0.9, 0.5, 0.25)


def test_pose_before_audio_is_refused_with_the_papers_table() -> None:
    with pytest.raises(ValueError, match=r"'IPA'.*text, then audio, then pose; paper section 3\.3 and table 1, IPA"):
        check_stages([stage("I", 0, 0), stage("IPA", 0, 0.25), stage("all", 0.5, 0.25)])


def test_a_stronger_condition_kept_more_often_is_refused_with_the_principle() -> None:
    with pytest.raises(ValueError, match=r"pose is the stronger.*section 3\.3, principle 2\): 0\.5 > 0\.25"):
        check_stages([stage("A < P", 0.25, 0.5)])
    with pytest.raises(ValueError, match="audio is the stronger"):
        check_stages([stage("T < A", 0.95, 0.1)])


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "at least one stage"),
        ([stage("none", 0, 0, steps=0)], "'none': steps must be at least 1, got 0"),
        ([stage("2", 0.5, 0), stage("1", 0, 0)], r"'1' drops \['audio'\]"),
        ([stage("audio", 0.5, 0, text=0)], "joins only after every weaker one"),
        ([replace(stage("heard", 0.5, 0), pictures=True)], r"'heard': a single picture has text alone.*'audio'"),
        ([replace(stage("1", 0, 0), batch_size=0)], "'1': batch_size must be at least 1, got 0"),
    ],
)
def test_other_broken_stages_are_named(stages: list[Stage], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_stages(stages)


@pytest.mark.parametrize("name", ["text", "audio", "pose", "reference"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_ratio_is_a_probability(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"ratios\.{name}"):
        Ratios(**{name: value})


def test_stage_at_counts_steps_from_zero() -> None:
    stages = [stage("1", 0, 0, steps=2), stage("2", 0.5, 0, steps=1), stage("3", 0.5, 0.25, steps=3)]
    names = [stage_at(stages, step).name for step in range(8)]
    assert names == ["1", "1", "2", "3", "3", "3", "3", "3"]
