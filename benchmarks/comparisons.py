"""The comparisons with public implementations that a reader wants first, written into the README.

    python benchmarks/comparisons.py

Every line is a row of the last results file of a benchmark in `benchmarks/end_to_end/`, which must be there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from small_model.summary import ROOT, write_between

README = ROOT / "README.md"
BEGIN, END = "<!-- comparisons: written by benchmarks/comparisons.py -->\n", "<!-- end of comparisons -->\n"
Row = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table.

    Attributes:
        says: What is compared.
        benchmark: Name of the results file.
        where: Columns by which its row is found.
        value: Column with the ratio.
        memory: Column with the ratio of memory, or None.
    """

    says: str
    benchmark: str
    where: Mapping[str, object]
    value: str
    memory: str | None = None


def _vae(says: str, model: str, what: str) -> Line:
    memory = "memory_ratio" if what.startswith("clip") else None
    return Line(says=says, benchmark="vae", where={"model": model, "what": what}, value="speedup", memory=memory)


LINES = (
    *(
        Line(
            says=f"HunyuanVideo blocks, forward, width {width}, a caption of 64 tokens as each pipeline passes it",
            benchmark="dit_forward",
            where={"width": width, "text": "64 of 256 tokens"},
            value="times faster",
        )
        for width in (256, 512, 1536)
    ),
    Line(
        says="training step on them, width 256, the same caption",
        benchmark="train_step",
        where={"tokens": 2112, "text": "64 of 256 tokens", "measure": "diffusers' step / ours, checkpointing none"},
        value="ratio",
    ),
    Line(
        says="the same, with the activation checkpointing of each",
        benchmark="train_step",
        where={
            "tokens": 2112,
            "text": "64 of 256 tokens",
            "measure": "checkpointed diffusers' step / ours, checkpointing selective",
        },
        value="ratio",
    ),
    _vae("HunyuanVideo's VAE, decode", "hunyuan_video", "decode whole"),
    _vae("the same, encode", "hunyuan_video", "encode whole"),
    _vae("the same, a clip in tiles", "hunyuan_video", "clip, tiles"),
    _vae("the same, encode a clip in tiles", "hunyuan_video", "clip, encode tiles"),
    _vae("Wan's VAE, decode a clip in tiles", "wan", "clip, tiles"),
    _vae("the same, encode a clip in tiles", "wan", "clip, encode tiles"),
)


def rows_of(benchmark: str) -> list[Row]:
    """Rows of the last results file of a benchmark."""
    files = sorted((ROOT / "benchmarks/results").glob(f"{benchmark}_cpu_*.jsonl"))
    return [json.loads(line) for line in files[-1].read_text().splitlines()] if files else []


def comparisons(read: Callable[[str], list[Row]] = rows_of) -> str:
    """Markdown table of :data:`LINES`.

    Raises:
        ValueError: a row has not been measured.
    """
    text = "| against diffusers, same weights, one CPU thread | times as fast | share of its memory |\n|---|---|---|\n"
    for line in LINES:
        found = [row for row in read(line.benchmark) if all(row.get(key) == value for key, value in line.where.items())]
        if not found:
            script = f"benchmarks/end_to_end/{line.benchmark}.py --save"
            raise ValueError(f"no row {dict(line.where)} of {line.benchmark}; run {script}")
        memory = "" if line.memory is None else f"{found[-1][line.memory]:.2f}"
        text += f"| {line.says} | {found[-1][line.value]:.2f} | {memory} |\n"
    return text


if __name__ == "__main__":
    write_between(README, BEGIN, END, comparisons())
