"""wav2vec 2.0 features against transformers alone: same weights, same process, interleaved, medians of CPU seconds.

    python benchmarks/end_to_end/audio_features.py [--seconds 6] [--repeats 5] [--save]

A model of wav2vec 2.0 base's size with random weights. Theirs is the forward with all hidden states; ours adds the
loudness, the check of the waveform and the choice of layers. Before anything is timed, the states of both must agree.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace

import report
import torch
from transformers import Wav2Vec2Config as PublicConfig
from transformers import Wav2Vec2Model

from omnihuman_conditions.audio.wav2vec2 import Wav2Vec2Config, Wav2Vec2Extractor

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
    report.show("wav2vec 2.0 features, seconds, median", [row])
    if arguments.save:
        report.save("audio_features", [row])
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
    times = report.in_turns({"transformers": states, "ours": lambda: extractor.extract(waveform)}, repeats)
    medians = {f"{name}_s": report.median(values) for name, values in times.items()}
    ratio, *_ = report.ratios(times["ours"], times["transformers"])
    return {"seconds of sound": seconds, **medians, "times the time": ratio, "relative error": float(f"{error:.1e}")}


if __name__ == "__main__":
    sys.exit(main())
