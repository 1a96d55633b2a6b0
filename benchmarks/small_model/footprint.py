"""Time and peak memory of the command line, each run in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from omnihuman_train.data.characters import FRAME_RATE
from small_model.generation import heldout_clip, write_picture, write_wav

RUNS = 3


def footprint(model: str) -> dict[str, float]:
    """Seconds of a 4 s clip, and peak memory of clips of 4, 5 and 20 s; medians of three runs, taken in turns."""
    runs = [[run(model, seconds) for seconds in (4, 5, 20)] for _ in range(RUNS)]
    four, five, twenty = ([median(values) for values in zip(*one, strict=True)] for one in zip(*runs, strict=True))
    return {
        "seconds_for_4s_clip": four[0],
        "peak_mb_4s": four[1],
        "peak_mb_5s": five[1],
        "peak_mb_20s": twenty[1],
        "peak_20s_over_5s": twenty[1] / five[1],
    }


def run(model: str, seconds: int) -> tuple[float, float]:
    """Wall seconds and peak resident megabytes of one generation."""
    clip = heldout_clip(5000, num_frames=round(seconds * FRAME_RATE), shape=(64, 64, "half"), speech="speech")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_picture(root / "reference.png", clip.reference)
        write_wav(root / "voice.wav", clip.waveform)
        command = [sys.executable, "-c", _MEASURED, "generate", "--image", str(root / "reference.png")]
        command += ["--audio", str(root / "voice.wav"), "--out", str(root / "out.mp4"), "--model", model]
        started = time.monotonic()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return time.monotonic() - started, float(done.stderr.split()[-1]) / 1024


# Not ru_maxrss, which a process starts with that of its parent.
_MEASURED = """
import sys
from pathlib import Path
from omnihuman_infer.cli import main
code = main(sys.argv[1:])
(peak,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(peak.split()[1], file=sys.stderr)
sys.exit(code)
"""
