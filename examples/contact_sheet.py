"""Frames of one or more videos in one picture, a row each.

python examples/contact_sheet.py out/demo.mp4 --out docs/images/demo.png --columns 8 --scale 2
"""

from __future__ import annotations

import argparse
from pathlib import Path

import av
import numpy as np
from PIL import Image


def main() -> None:
    """Write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--columns", type=int, default=8, help="frames per video, evenly spaced")
    parser.add_argument("--scale", type=int, default=2, help="enlargement")
    arguments = parser.parse_args()
    rows = [np.concatenate(evenly(frames(path), arguments.columns), axis=1) for path in arguments.videos]
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    sheet = Image.fromarray(np.concatenate(padded, axis=0))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.resize((sheet.width * arguments.scale, sheet.height * arguments.scale), Image.Resampling.LANCZOS).save(
        arguments.out
    )


def frames(path: Path) -> list[np.ndarray]:
    """All frames of a video, ``(H, W, 3)`` uint8 each."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def evenly(items: list[np.ndarray], count: int) -> list[np.ndarray]:
    """``count`` items from first to last."""
    return [items[round(i * (len(items) - 1) / max(count - 1, 1))] for i in range(count)]


if __name__ == "__main__":
    main()
