"""Draws the picture and the voice of the demo: a held-out character, larger than the model's own size.

python examples/assets/make_assets.py
"""

from __future__ import annotations

import wave
from pathlib import Path

import torch
from PIL import Image

from omnihuman_train.data.characters import SAMPLE_RATE, make_clip, split_seed

HERE = Path(__file__).parent


def main() -> None:
    """Write ``demo.png``, ``demo.wav`` and ``demo.txt`` beside this file."""
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


if __name__ == "__main__":
    main()
