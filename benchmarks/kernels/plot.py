"""Draw the roofline of a results file as SVG: ``python benchmarks/kernels/plot.py RESULTS.jsonl [OUT.svg]``."""

from __future__ import annotations

import json
import math
import sys
from html import escape
from pathlib import Path
from typing import Any

MATRIX_FLOPS = 800e12
WIDTH, HEIGHT, MARGIN = 900, 560, 70
X_RANGE, Y_RANGE = (0.1, 1e5), (1e11, 2e15)


def place(value: float, limits: tuple[float, float], start: float, end: float) -> float:
    """Position of ``value`` on a logarithmic axis."""
    low, high = (math.log10(x) for x in limits)
    return start + (math.log10(value) - low) / (high - low) * (end - start)


def x_of(intensity: float) -> float:
    return place(intensity, X_RANGE, MARGIN, WIDTH - 20)


def y_of(rate: float) -> float:
    return place(rate, Y_RANGE, HEIGHT - MARGIN, 20)


def draw(rows: list[dict[str, Any]]) -> str:
    """The plot of all measured rows.

    Raises:
        ValueError: No row was measured.
    """
    rows = [row for row in rows if row["status"] == "measured"]
    if not rows:
        raise ValueError("the results file has no measured row; run gpu_check.py on a GPU first")
    copy = rows[0]["copy_bandwidth"]
    knee = MATRIX_FLOPS / copy
    corners = [(X_RANGE[0], X_RANGE[0] * copy), (knee, MATRIX_FLOPS), (X_RANGE[1], MATRIX_FLOPS)]
    roof = " ".join(f"{x_of(x):.1f},{y_of(max(y, Y_RANGE[0])):.1f}" for x, y in corners)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<polyline points="{roof}" fill="none" stroke="black" stroke-width="2"/>',
        f'<text x="{WIDTH // 2}" y="{HEIGHT - 20}" text-anchor="middle">flops per byte</text>',
        f'<text x="20" y="{HEIGHT // 2}" transform="rotate(-90 20 {HEIGHT // 2})" text-anchor="middle">flop/s</text>',
        f'<text x="{MARGIN}" y="16">{escape(str(rows[0]["device"]))}, copy {copy / 1e12:.2f} TB/s</text>',
    ]
    for power in range(0, 6):
        parts.append(f'<text x="{x_of(10.0**power):.1f}" y="{HEIGHT - 45}" text-anchor="middle">1e{power}</text>')
    for power in range(11, 16):
        parts.append(f'<text x="{MARGIN - 8}" y="{y_of(10.0**power):.1f}" text-anchor="end">1e{power}</text>')
    for row in rows:
        x, y = x_of(row["flops"] / row["bytes"]), y_of(row["flops"] / row["seconds"])
        colour = "#1f77b4" if row["direction"] == "forward" else "#d62728"
        title = escape(f"{row['op']} {row['shape']} {row['direction']}: {row['seconds'] * 1e3:.3f} ms")
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"><title>{title}</title></circle>')
        parts.append(f'<text x="{x + 8:.1f}" y="{y + 4:.1f}" fill="{colour}">{escape(row["op"])}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    source = Path(sys.argv[1])
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else source.with_suffix(".svg")
    target.write_text(draw([json.loads(line) for line in source.read_text().splitlines()]))
    print(target)
