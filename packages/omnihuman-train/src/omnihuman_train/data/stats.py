"""What a data set can train: samples and hours by task, by bucket and by licence, as tables and as a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.table import Table

from omnihuman_train.data.manifest import SampleRecord

# A sample trains a task where it is fit for it (paper section 3.3, principle 1).
TASKS: dict[str, Callable[[SampleRecord], bool]] = {
    "any": lambda record: True,
    "text": lambda record: record.has_text,
    "audio": lambda record: record.has_audio,
    "pose": lambda record: record.has_pose,
    "audio + pose": lambda record: record.has_audio and record.has_pose,
}
_COLOURS = {"any": "#b8bcc4", "text": "#4c78a8", "audio": "#f58518", "pose": "#54a24b", "audio + pose": "#b279a2"}


@dataclass(frozen=True, kw_only=True)
class Count:
    """Samples of one kind.

    Attributes:
        samples: How many.
        hours: Their length.
    """

    samples: int
    hours: float


def count(records: Sequence[SampleRecord]) -> dict[str, Count]:
    """Samples that each task can use."""
    counts = {}
    for task, fits in TASKS.items():
        lengths = [record.frames / record.fps for record in records if fits(record)]
        counts[task] = Count(samples=len(lengths), hours=sum(lengths) / 3600)
    return counts


def groups(records: Sequence[SampleRecord], name: str) -> dict[str, list[SampleRecord]]:
    """Records by ``bucket`` or ``licence``, in order."""
    found: dict[Any, list[SampleRecord]] = {}
    for record in records:
        found.setdefault(getattr(record, name), []).append(record)
    return {str(key): found[key] for key in sorted(found)}


def table(records: Sequence[SampleRecord], name: str) -> Table:
    """Samples of each group that each task can use, and the hours of all."""
    result = Table(title=f"samples by {name}")
    result.add_column(name)
    for task in TASKS:
        result.add_column(task, justify="right")
    result.add_column("hours", justify="right")
    rows = {**groups(records, name), "all": list(records)}
    for label, members in rows.items():
        counts = count(members)
        if label == "all":
            result.add_section()
        result.add_row(label, *(f"{counts[task].samples:,}" for task in TASKS), f"{counts['any'].hours:.2f}")
    return result


def plot(records: Sequence[SampleRecord], path: Path, title: str) -> None:
    """Draw hours by task, for all samples, by bucket and by licence, as a png.

    Raises:
        ValueError: matplotlib is not installed, or the path does not end in .png.
        OSError: the file cannot be written.
    """
    if path.suffix != ".png":
        raise ValueError(f"--plot {path}: must end in .png")
    try:
        figures: Any = import_module("matplotlib.figure")
    except ImportError:
        raise ValueError("--plot needs matplotlib: pip install 'omnihuman-train[plot]'") from None
    kinds = {kind: groups(records, kind) for kind in ("bucket", "licence")}
    rows = [len(TASKS), *(len(members) for members in kinds.values())]
    figure = figures.Figure(figsize=(8, 2.4 + 0.42 * sum(rows)), layout="constrained")
    axes = figure.subplots(3, 1, gridspec_kw={"height_ratios": [n + 1 for n in rows]})
    counts = count(records)
    # Minutes read better than hundredths of an hour.
    unit, scale = ("hours", 1.0) if counts["any"].hours >= 1 else ("minutes", 60.0)
    bars = axes[0].barh(list(TASKS), [counts[task].hours * scale for task in TASKS], color=list(_COLOURS.values()))
    axes[0].bar_label(bars, [f" {counts[task].samples:,} samples" for task in TASKS], fontsize=8)
    axes[0].set_title(title, loc="left", fontsize=11)
    for axis, (kind, members) in zip(axes[1:], kinds.items(), strict=True):
        _bars(axis, members, scale)
        axis.set_title(f"by {kind}", loc="left", fontsize=10)
    for axis in axes:
        axis.invert_yaxis()
        axis.margins(x=0.18)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    axes[-1].set_xlabel(unit)
    axes[1].legend(
        axes[1].containers, list(TASKS), fontsize=7, ncols=len(TASKS), loc="lower right", bbox_to_anchor=(1, 1.0)
    )
    figure.savefig(path, dpi=150)


def _bars(axis: Any, members: dict[str, list[SampleRecord]], scale: float) -> None:
    """One group of thin bars, a task each, for every label."""
    height = 0.8 / len(TASKS)
    for number, task in enumerate(TASKS):
        places = [row + (number - (len(TASKS) - 1) / 2) * height for row in range(len(members))]
        lengths = [count(records)[task].hours * scale for records in members.values()]
        axis.barh(places, lengths, height=height, color=_COLOURS[task])
    axis.set_yticks(range(len(members)), list(members))
