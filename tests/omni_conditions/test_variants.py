"""Variants are what the table names, and only here are the forbidden ones possible."""

from typing import Any

import pytest
from omni_conditions.run import audio_samples
from omni_conditions.training import FIRST
from omni_conditions.variants import VARIANTS, Protocol, trainings

from omnihuman_train.stages import Ratios, Stage, check_stages

FORBIDDEN = {"ipa": "a stronger condition joins only after every weaker one", "iap_a_lt_p": "principle 2"}


def stages(name: str) -> tuple[Stage, ...]:
    ratios = (FIRST, *VARIANTS[name].phases)
    return tuple(Stage(name=str(number), steps=1, ratios=ratio) for number, ratio in enumerate(ratios))


@pytest.mark.parametrize("name", sorted(set(VARIANTS) - set(FORBIDDEN)))
def test_the_paper_s_own_ways_keep_the_rules(name: str) -> None:
    check_stages(stages(name))


@pytest.mark.parametrize("name", FORBIDDEN)
def test_the_others_break_them(name: str) -> None:
    with pytest.raises(ValueError, match=FORBIDDEN[name]):
        check_stages(stages(name))


def test_ratios_are_the_paper_s() -> None:
    assert VARIANTS["iap_a_gt_p"].phases[1] == Ratios(text=0.9, audio=0.5, pose=0.25)
    less = VARIANTS["iap_a_lt_p"].phases[1]
    assert (less.audio, less.pose) == (0.25, 0.5)
    assert [VARIANTS[f"text_{share}"].share for share in (0, 25, 50, 100)] == [0.0, 0.25, 0.5, 1.0]
    assert all(ratios.pose == 0 for ratios in VARIANTS["text_100"].phases)


def test_beginnings_are_shared() -> None:
    names = trainings(list(VARIANTS))
    assert len(names) == len(set(names)) == 12
    chains = {variant: [name for name, _ in VARIANTS[variant].chain()] for variant in VARIANTS}
    assert chains["text_100"][0] == chains["iap_a_gt_p"][0] == chains["iap_a_lt_p"][0]
    assert chains["ipa"] == ["text100-a0p25", "text100-a0p25-a50p25"]
    assert len({chain[1] for chain in chains.values()}) == 7


def test_samples_with_a_voice_are_counted() -> None:
    protocol = Protocol(fit=100, pool=300, phase_steps=10, batch_size=8)
    # 160 samples, of which the data that may keep its voice is all or a quarter.
    assert audio_samples("text_0", protocol) == 80
    assert audio_samples("text_100", protocol) == 20
    assert audio_samples("ipa", protocol) == 10


@pytest.mark.parametrize("change", [{"width": 100}, {"clips": 2}, {"pool": -1}, {"phase_steps": 0}])
def test_bad_protocols_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        Protocol(**change)
