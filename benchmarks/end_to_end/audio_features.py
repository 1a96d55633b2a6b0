"""wav2vec 2.0 features against transformers alone: same weights, same process, interleaved, medians of CPU seconds.

    python benchmarks/end_to_end/audio_features.py [--seconds 6] [--repeats 5] [--save]

A model of wav2vec 2.0 base's size with random weights. Theirs is the forward with all hidden states; ours adds the
loudness, the check of the waveform and the choice of layers. Before anything is timed, the states of both must agree.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from transformers import Wav2Vec2Config as PublicConfig
from transformers import Wav2Vec2Model

from omnihuman_conditions.audio.features import Wav2Vec2Config, Wav2Vec2Extractor

RESULTS = Path(__file__).parents[1] / "results"
TOLERANCE = 1e-5
SAMPLE_RATE = 16000


def main() -> int:
    """Measure and print one row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode(), tempfile.TemporaryDirectory() as directory:
        row = measure(directory, arguments.seconds, arguments.repeats)
    facts = {
        "hardware": f"{platform.machine()}, 1 thread",
        "torch": torch.__version__,
        "command": "python benchmarks/end_to_end/audio_features.py " + " ".join(sys.argv[1:]),
    }
    line = json.dumps({**facts, **row})
    print(line)
    if arguments.save:
        (RESULTS / f"audio_features_cpu_{datetime.now(UTC):%Y%m}.jsonl").write_text(line + "\n")
    return 0


def measure(directory: str, seconds: int, repeats: int) -> dict[str, float]:
    """CPU seconds of both, and how many times the time of transformers ours takes."""
    torch.manual_seed(0)
    public = Wav2Vec2Model(PublicConfig()).eval()
    public.save_pretrained(directory)
    config = Wav2Vec2Config.base(directory)
    waveform = 0.1 * torch.randn(1, seconds * SAMPLE_RATE)
    # transformers' feature extractor: the whole waveform to zero mean and unit variance.
    normalised = (waveform - waveform.mean()) / waveform.std(correction=0)

    def states() -> tuple[torch.Tensor, ...]:
        hidden: tuple[torch.Tensor, ...] = public(normalised, output_hidden_states=True).hidden_states
        return hidden

    expected = torch.stack([states()[layer] for layer in config.layers], dim=2)
    found = Wav2Vec2Extractor(replace(config, loudness=False)).extract(waveform).values
    error = float((found - expected).norm() / expected.norm())
    if error > TOLERANCE:
        raise SystemExit(f"states differ by {error:.1e}; nothing is timed")
    extractor = Wav2Vec2Extractor(config)
    times: dict[str, list[float]] = {"transformers": [], "ours": []}
    for _ in range(repeats):
        for name, run in (("transformers", states), ("ours", lambda: extractor.extract(waveform))):
            started = time.process_time()
            run()
            times[name].append(time.process_time() - started)
    medians = {f"{name}_s": round(statistics.median(values), 4) for name, values in times.items()}
    ratio = statistics.median(b / a for a, b in zip(times["transformers"], times["ours"], strict=True))
    return {"seconds of sound": seconds, **medians, "times the time": round(ratio, 3), "relative error": error}


if __name__ == "__main__":
    sys.exit(main())
