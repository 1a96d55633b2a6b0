"""Which conditions take part in a generation (paper section 3.4)."""

from __future__ import annotations

from collections.abc import Collection

# Weakest first: how closely a condition determines the motion (paper section 3.3).
STRENGTH = ("text", "audio", "pose")
# They say who is shown and what came before, so they have no place in that order: active whenever they are given.
APPEARANCE = ("reference", "motion")


def active_conditions(given: Collection[str]) -> frozenset[str]:
    """Conditions that are active for the inputs given; all others are at their null.

    The paper: in audio-driven generation every condition but pose is active; with audio and pose, all; with pose alone,
    audio is off. In general an active condition brings the weaker ones with it, unless deemed unnecessary: text always
    comes along (a prompt can be made up for any picture), audio only when there is a sound.

    Args:
        given: Names out of ``text``, ``audio``, ``pose``, ``reference``, ``motion``.

    Raises:
        ValueError: an unknown name, or nothing given.

    Example:
        >>> sorted(active_conditions({"reference", "audio"}))
        ['audio', 'reference', 'text']
    """
    unknown = set(given) - {*STRENGTH, *APPEARANCE}
    if unknown:
        raise ValueError(f"unknown conditions {sorted(unknown)}, known are {[*STRENGTH, *APPEARANCE]}")
    if not given:
        raise ValueError(f"no condition given, at least one of {[*STRENGTH, *APPEARANCE]} is needed")
    return frozenset(given) | {STRENGTH[0]}
