"""Draw the sheets of frames that the README shows, from held-out characters and voices.

    python benchmarks/frames.py [--model tiny|DIR] [--out docs/images]

``demo.png``: a row per video from picture and voice, its picture first. ``text.png``: videos from a prompt and a voice
alone, without a picture, the prompt above each.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from small_model.generation import generate, heldout_clip
from torch import Tensor
from torch.nn.functional import interpolate

from omnihuman_infer import OmniHumanPipeline

NUM_FRAMES, COLUMNS, SCALE, MARGIN, CAPTION = 57, 10, 2, 8, 18


@dataclass(frozen=True, kw_only=True)
class Row:
    """A video of the sheet: held-out character ``index`` in a shape, with what drives it."""

    index: int
    shape: tuple[int, int, str]
    pose: bool = False
    persons: int = 1
    region: tuple[float, float, float, float] | None = None


DRIVEN = (
    Row(index=9, shape=(64, 64, "half")),
    Row(index=4, shape=(64, 64, "face")),
    Row(index=13, shape=(64, 64, "half")),
    Row(index=3001, shape=(48, 80, "face"), persons=2, region=(0.0, 0.0, 0.5, 1.0)),
    Row(index=1006, shape=(80, 48, "whole"), pose=True),
)
WRITTEN = (
    "half body, a cartoon woman in a green shirt with blonde hair, talking, raising both hands, on a blue background",
    "half body, a cartoon woman in a purple shirt with pink hair, talking, arms down, on a gray background",
    "close-up of a cartoon man with black hair in a white shirt, talking, on a pink background",
    "close-up of a cartoon man with red hair in a blue shirt, talking, on a white background",
)


def main() -> None:
    """Write both sheets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="shipped model or model directory")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs/images")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    pipeline = OmniHumanPipeline.from_pretrained(arguments.model)
    arguments.out.mkdir(parents=True, exist_ok=True)
    driven = [("", strip(*driven_frames(pipeline, row))) for row in DRIVEN]
    sheet(driven).save(arguments.out / "demo.png")
    written = [(prompt, strip(None, written_frames(pipeline, prompt, i))) for i, prompt in enumerate(WRITTEN)]
    sheet(written).save(arguments.out / "text.png")


def driven_frames(pipeline: OmniHumanPipeline, row: Row) -> tuple[Tensor, Tensor]:
    """The picture, and the frames that it and a voice (and poses) become."""
    clip = heldout_clip(row.index, num_frames=NUM_FRAMES, shape=row.shape, persons=row.persons, speech="speech")
    options = {} if row.region is None else {"speaker_region": row.region}
    return clip.reference, generate(pipeline, clip, pose=row.pose, prompt=clip.caption, **options)


def written_frames(pipeline: OmniHumanPipeline, prompt: str, index: int) -> Tensor:
    """Frames from a prompt and a voice, without a picture."""
    clip = heldout_clip(5000 + index, num_frames=NUM_FRAMES, shape=(64, 64, "half"), speech="speech")
    return generate(pipeline, clip, prompt=prompt, picture=False)


def strip(picture: Tensor | None, frames: Tensor) -> Tensor:
    """The picture and frames at equal times side by side, ``(3, H, W)`` in [-1, 1]."""
    shown = COLUMNS if picture is None else COLUMNS - 1
    times = torch.linspace(0, frames.shape[1] - 1, shown).round().long()
    cells = [*([] if picture is None else [picture]), *frames[:, times].unbind(1)]
    gap = torch.ones(3, cells[0].shape[1], MARGIN // SCALE)
    return torch.cat([part for cell in cells for part in (cell, gap)], dim=2)


def sheet(rows: list[tuple[str, Tensor]]) -> Image.Image:
    """Strips below each other, each under its caption."""
    images = [to_image(pixels) for _, pixels in rows]
    heights = [
        image.height + MARGIN + (CAPTION if caption else 0) for image, (caption, _) in zip(images, rows, strict=True)
    ]
    whole = Image.new("RGB", (max(image.width for image in images), sum(heights)), "white")
    draw, top = ImageDraw.Draw(whole), 0
    for (caption, _), image, height in zip(rows, images, heights, strict=True):
        if caption:
            draw.text((2, top + 3), caption, fill="black")
        whole.paste(image, (0, top + (CAPTION if caption else 0)))
        top += height
    return whole


def to_image(pixels: Tensor) -> Image.Image:
    """``(3, H, W)`` in [-1, 1], each pixel drawn ``SCALE`` times as large."""
    large = interpolate(pixels[None], scale_factor=SCALE, mode="nearest")[0]
    return Image.fromarray(((large.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


if __name__ == "__main__":
    main()
