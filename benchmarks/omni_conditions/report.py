"""Table, plot and verdicts from the rows: where the small experiment agrees with the paper, and where it does not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean, stdev
from typing import Any

from omni_conditions.variants import CEILING, VARIANTS

Row = dict[str, Any]

# Column, heading, whether more is better (None: neither), digits.
COLUMNS: tuple[tuple[str, str, bool | None, int], ...] = (
    ("lip_sync_r", "lip sync r", True, 3),
    ("other_voice_r", "other voice r", None, 3),
    ("identity_error", "identity error", False, 4),
    ("hand_motion", "hand motion", None, 4),
    ("hand_motion_gap", "distance to true motion", False, 4),
    ("hands_missing", "hands missing", False, 3),
    ("frechet_frames", "Frechet, frames", False, 4),
    ("frechet_video", "Frechet, video", False, 4),
)
PER_CLIP = {column for column, *_ in COLUMNS if not column.startswith("frechet")}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A reading of the paper's table 1: ``higher`` has more of ``column`` than ``lower``."""

    text: str
    column: str
    higher: str
    lower: str


CLAIMS = (
    Claim(
        text="all text-only data gives better lip sync than none",
        column="lip_sync_r",
        higher="text_100",
        lower="text_0",
    ),
    Claim(
        text="a quarter of it costs lip sync against none", column="lip_sync_r", higher="text_0", lower="text_25"
    ),
    Claim(
        text="all text-only data brings frames closer to real ones",
        column="frechet_frames",
        higher="text_0",
        lower="text_100",
    ),
    Claim(
        text="all text-only data brings videos closer to real ones",
        column="frechet_video",
        higher="text_0",
        lower="text_100",
    ),
    Claim(
        text="all text-only data makes hands move more than none",
        column="hand_motion",
        higher="text_100",
        lower="text_0",
    ),
    Claim(text="pose before audio costs lip sync", column="lip_sync_r", higher="text_100", lower="ipa"),
    Claim(
        text="audio before pose syncs better than pose before audio",
        column="lip_sync_r",
        higher="iap_a_gt_p",
        lower="ipa",
    ),
    Claim(
        text="a pose ratio above that of audio costs lip sync",
        column="lip_sync_r",
        higher="iap_a_gt_p",
        lower="iap_a_lt_p",
    ),
    Claim(
        text="a pose ratio above that of audio brings frames further from real ones",
        column="frechet_frames",
        higher="iap_a_lt_p",
        lower="iap_a_gt_p",
    ),
)  # fmt: skip


def of(rows: Sequence[Row], variant: str) -> dict[int, Row]:
    """Rows of a variant by seed."""
    return {row["seed"]: row for row in rows if row["variant"] == variant}


def difference(rows: Sequence[Row], claim: Claim) -> tuple[float, float] | None:
    """Mean of ``higher - lower`` and its standard error, over clips and seeds that both have, paired.

    The Frechet distances have one value a seed; their error is NaN with one seed. None where a variant is missing.
    """
    higher, lower = of(rows, claim.higher), of(rows, claim.lower)
    pairs: list[tuple[float, float]] = []
    for seed in sorted(higher.keys() & lower.keys()):
        if claim.column in PER_CLIP:
            both = zip(higher[seed]["per_clip"][claim.column], lower[seed]["per_clip"][claim.column], strict=True)
            pairs += [(a, b) for a, b in both if a is not None and b is not None]
        else:
            pairs.append((higher[seed][claim.column], lower[seed][claim.column]))
    if not pairs:
        return None
    changes = [a - b for a, b in pairs]
    return fmean(changes), stdev(changes) / math.sqrt(len(changes)) if len(changes) > 1 else math.nan


def verdict(change: float, error: float) -> str:
    """``agrees`` or ``disagrees`` beyond two standard errors, ``undecided`` within them or without an error."""
    if math.isnan(error) or abs(change) <= 2 * error:
        return "undecided"
    return "agrees" if change > 0 else "disagrees"


def as_markdown(rows: Sequence[Row], command: str) -> str:
    """The page that is published: protocol, table, verdicts."""
    protocol, seeds = rows[0]["protocol"], sorted({row["seed"] for row in rows if row["variant"] != CEILING})
    order = [*VARIANTS, CEILING]
    lines = [
        "# Text-only data, order and ratios of conditions: the paper's table 1 in small",
        "",
        f"- `{command}`",
        f"- {', '.join(f'{name} {value}' for name, value in protocol.items())}",
        f"- seeds {', '.join(map(str, seeds))}; {rows[0]['hardware']}; torch {rows[0]['torch']}",
        "",
        "Driven by picture, voice and caption; pose is never given. Means over held-out characters and voices, +- the",
        "standard deviation over seeds where there are several. Hands in short sides; frames full of noise move them",
        "too, so read motion next to its distance from that of the truth. The last row is the rendered truth through",
        "the VAE: what a model without a fault would get.",
        "",
        "| variant | audio samples | " + " | ".join(heading for _, heading, _, _ in COLUMNS) + " |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    for name in order:
        mine = list(of(rows, name).values())
        if mine:
            title = VARIANTS[name].title if name in VARIANTS else "truth through the VAE"
            heard = f"{fmean(row['audio_samples'] for row in mine):.0f}" if name in VARIANTS else ""
            cells = [_cell([row[column] for row in mine], digits) for column, _, _, digits in COLUMNS]
            lines.append(f"| {title} | {heard} | {' | '.join(cells)} |")
    lines += ["", "| the paper's table says | here | difference | |", "|---|---|---|---|"]
    for claim in CLAIMS:
        result = difference(rows, claim)
        if result is None:
            lines.append(f"| {claim.text} | not run | | |")
            continue
        change, error = result
        spread = "one seed" if math.isnan(error) else f"+- {error:.4f}"
        lines.append(f"| {claim.text} | {verdict(*result)} | {change:+.4f} | {spread} |")
    lines += [
        "",
        "A difference is that of the two variants in the measure, in the direction of the claim, with its standard",
        "error over pairs of clips (lips, hands) or over seeds (Frechet). Beyond two of them it agrees or disagrees;",
        "otherwise it is undecided.",
        "",
    ]
    return "\n".join(lines)


def _cell(values: Sequence[float], digits: int) -> str:
    spread = f" +- {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{spread}"


# Panels of the plot.
_PANELS = ("lip_sync_r", "hand_motion", "hand_motion_gap", "identity_error", "frechet_frames", "frechet_video")
_WIDTH, _BAR, _LEFT, _TOP = 300, 18, 150, 34


def as_svg(rows: Sequence[Row]) -> str:
    """Bars of every variant, one panel a measure; dots are seeds, the dashed line is the truth through the VAE."""
    names = [name for name in VARIANTS if of(rows, name)]
    height = _TOP + len(names) * (_BAR + 6) + 12
    headings = {column: heading for column, heading, _, _ in COLUMNS}
    parts = []
    for number, column in enumerate(_PANELS):
        x0, y0 = (number % 3) * (_LEFT + _WIDTH + 20), (number // 3) * height
        values = {name: [row[column] for row in of(rows, name).values()] for name in names}
        truth = [row[column] for row in of(rows, CEILING).values()]
        top = max([*(abs(v) for group in values.values() for v in group), *truth, 1e-9])
        parts.append(f'<text x="{x0 + _LEFT}" y="{y0 + 20}" font-weight="bold">{escape(headings[column])}</text>')
        for line, name in enumerate(names):
            y = y0 + _TOP + line * (_BAR + 6)
            length = max(fmean(values[name]), 0.0) / top * _WIDTH
            parts.append(
                f'<text x="{x0 + _LEFT - 6}" y="{y + 13}" text-anchor="end">{escape(VARIANTS[name].title)}</text>'
            )
            parts.append(f'<rect x="{x0 + _LEFT}" y="{y}" width="{length:.1f}" height="{_BAR}" fill="#7aa6c2"/>')
            parts += [
                f'<circle cx="{x0 + _LEFT + max(value, 0.0) / top * _WIDTH:.1f}" cy="{y + _BAR / 2}" r="3"/>'
                for value in values[name]
            ]
        for value in truth:
            x = x0 + _LEFT + value / top * _WIDTH
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y0 + _TOP - 4}" y2="{y0 + height - 14}" stroke="#b33" '
                'stroke-dasharray="4 3"/>'
            )
    size = f'width="{3 * (_LEFT + _WIDTH + 20)}" height="{2 * height}"'
    style = 'font-family="sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n' + "\n".join(parts) + "\n</svg>\n"
