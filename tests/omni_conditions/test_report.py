"""Verdicts are arithmetic on pairs; the page and the plot say what the rows say."""

import math
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
import scipy.stats
from omni_conditions.report import CLAIMS, COLUMNS, PER_CLIP, Claim, as_markdown, as_svg, difference, verdict
from omni_conditions.variants import CEILING, VARIANTS, Protocol

CLAIM = Claim(text="pose first costs sync", column="lip_sync_r", higher="text_100", lower="ipa")


def row(variant: str, seed: int, values: list[float | None], frechet: float = 1.0) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    columns = {name: sum(known) / len(known) for name, *_ in COLUMNS}
    return {
        **columns,
        "frechet_frames": frechet,
        "variant": variant,
        "seed": seed,
        "audio_samples": 7,
        "protocol": vars(Protocol()),
        "hardware": "a machine",
        "torch": "2",
        "per_clip": dict.fromkeys(PER_CLIP, values),
    }


def test_differences_are_paired_over_clips_and_seeds() -> None:
    high, low = [[0.5, 0.7, None, 0.4], [0.3, 0.2, 0.9, 0.4]], [[0.1, 0.6, 0.2, 0.4], [0.2, 0.1, 0.6, 0.5]]
    rows = [row("text_100", seed, values) for seed, values in enumerate(high)]
    rows += [row("ipa", seed, values) for seed, values in enumerate(low)]
    # A seed that only one of them has is left out.
    rows.append(row("ipa", 2, [0.9] * 4))
    changes = [0.4, 0.1, 0.0, 0.1, 0.1, 0.3, -0.1]
    result = difference(rows, CLAIM)
    assert result is not None
    assert result[0] == pytest.approx(sum(changes) / 7)
    assert result[1] == pytest.approx(float(scipy.stats.sem(changes)))
    assert difference(rows[:2], CLAIM) is None


def test_frechet_has_one_value_a_seed() -> None:
    claim = Claim(text="", column="frechet_frames", higher="text_0", lower="text_100")
    rows = [row("text_0", seed, [0.0], frechet=2.0 + seed) for seed in range(2)]
    rows += [row("text_100", seed, [0.0], frechet=1.0) for seed in range(2)]
    assert difference(rows, claim) == (1.5, pytest.approx(0.5))
    change, error = difference([rows[0], rows[2]], claim) or (0.0, 0.0)
    assert change == 1.0
    assert math.isnan(error)


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        (0.3, 0.1, "agrees"),
        (-0.3, 0.1, "disagrees"),
        (0.2, 0.1, "undecided"),
        (-0.1, 0.1, "undecided"),
        (9.0, math.nan, "undecided"),
    ],
)
def test_two_standard_errors_decide(change: float, error: float, word: str) -> None:
    assert verdict(change, error) == word


def test_every_claim_compares_variants_in_a_column() -> None:
    columns = {name for name, *_ in COLUMNS}
    assert all(claim.column in columns and {claim.higher, claim.lower} <= VARIANTS.keys() for claim in CLAIMS)


def test_the_page_and_the_plot_hold_every_row() -> None:
    rows = [row(name, seed, [0.25 + seed / 2, 0.5]) for name in VARIANTS for seed in (0, 1)]
    rows.append(row(CEILING, 0, [0.9]))
    page = as_markdown(rows, "the command")
    assert all(f"| {variant.title} | 7 | 0.500 +- 0.177 |" in page for variant in VARIANTS.values())
    assert "| truth through the VAE |  | 0.900 |" in page
    assert all(claim.text in page for claim in CLAIMS)
    assert "not run" not in page
    # The claim's own difference is zero here.
    assert "| pose before audio costs lip sync | undecided | +0.0000 |" in page
    tree = ElementTree.fromstring(as_svg(rows))
    tags = [element.tag.rpartition("}")[2] for element in tree]
    assert tags.count("rect") == 6 * 7
    assert tags.count("circle") == 6 * 7 * 2
    assert tags.count("line") == 6
    assert "not run" in as_markdown(rows[:2], "")
    assert ElementTree.fromstring(as_svg(rows[:1])) is not None
