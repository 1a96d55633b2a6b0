"""Paper section 3.4: which conditions are active."""

import pytest

from omnihuman_core.activation import STRENGTH, active_conditions


@pytest.mark.parametrize(
    ("given", "active"),
    [
        ({"reference", "audio"}, {"reference", "text", "audio"}),
        ({"reference", "text", "audio"}, {"reference", "text", "audio"}),
        ({"reference", "audio", "pose"}, {"reference", "text", "audio", "pose"}),
        ({"reference", "pose"}, {"reference", "text", "pose"}),
        ({"reference", "text"}, {"reference", "text"}),
        ({"text"}, {"text"}),
        ({"reference", "motion", "audio"}, {"reference", "motion", "text", "audio"}),
    ],
)
def test_the_rule(given: set[str], active: set[str]) -> None:
    assert active_conditions(given) == active


def test_order_of_strength_is_that_of_the_paper() -> None:
    assert STRENGTH == ("text", "audio", "pose")


def test_refusals() -> None:
    with pytest.raises(ValueError, match="unknown conditions \\['voice'\\]"):
        active_conditions({"voice"})
    with pytest.raises(ValueError, match="no condition given"):
        active_conditions(set())
