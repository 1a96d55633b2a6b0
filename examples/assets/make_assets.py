"""Draws the demo's picture, voice and gestures: a held-out character, larger than the model's own size.

python examples/assets/make_assets.py
"""

from __future__ import annotations

import json
import wave
from pathlib import Path

import torch
from einops import reduce
from PIL import Image
from torch import Tensor

from omnihuman_train.data.characters import FRAME_RATE, SAMPLE_RATE, make_clip, split_seed

HERE = Path(__file__).parent
# Of COCO-WholeBody's 133 points: head and arms, then hands. The rest is below the picture, or the voice's: the mouth.
SHOWN = (*range(11), *range(91, 133))


def main() -> None:
    """Write ``demo.png``, ``demo.wav``, ``demo.txt`` and ``gestures.json`` beside this file."""
    seed = split_seed("heldout", 9006)
    clip = make_clip(
        seed, num_frames=100, height=256, width=256, framing="half", speech="speech", persons=1, fail_rate=0.0
    )
    pixels = ((clip.reference + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(HERE / "demo.png")
    with wave.open(str(HERE / "demo.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((clip.waveform * 32767).round().to(torch.int16).numpy().tobytes())
    (HERE / "demo.txt").write_text(clip.caption + "\n")
    (HERE / "gestures.json").write_text(json.dumps(poses(clip.keypoints), separators=(",", ":")) + "\n")


def poses(keypoints: Tensor) -> dict[str, object]:
    """A keypoint file of ``(T, 133, 3)``: half the frames, each the mean of two, in thousandths of the picture."""
    halved = reduce(keypoints, "(t pair) k c -> t k c", "mean", pair=2)  # (T / 2, 133, 3)
    rows = [[[0, 0, 0] for _ in range(halved.shape[1])] for _ in halved]
    for row, points in zip(rows, halved.tolist(), strict=True):
        for index in SHOWN:
            x, y, score = points[index]
            if score == 1.0:
                row[index] = [round(x, 3), round(y, 3), 1]
    return {"format": "coco_wholebody_133", "fps": FRAME_RATE / 2, "aspect": 1.0, "keypoints": rows}


if __name__ == "__main__":
    main()
