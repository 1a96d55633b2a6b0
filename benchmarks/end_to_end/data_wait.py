"""How long a step of the recipe ``stage1:small`` waits for its data: the recipe itself, on clips of random numbers.

    python benchmarks/end_to_end/data_wait.py [--batch 2] [--steps 4] [--save]

The share of the steps' time is the trainer's own measure, ``speed/data_wait``. On a CPU a batch of the recipe's 64
samples takes an hour, so that a smaller one is run; beside it stands how long the stream takes to read and stack a
whole batch, which is done while the step before it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import report
import torch
from loader import SKELETON, SPEC, data_set, states
from safetensors.torch import save

from omnihuman_conditions.audio.wav2vec2 import Wav2Vec2Config
from omnihuman_conditions.text import ByteTextExtractorConfig
from omnihuman_core.config import to_toml
from omnihuman_train.data.manifest import Bucket
from omnihuman_train.data.plan import BatchConfig
from omnihuman_train.data.shards import STATES
from omnihuman_train.data.stream import FlowStream
from omnihuman_train.recipes import stage1
from omnihuman_train.stage_config import shortened
from omnihuman_train.stage_run import run_stage
from omnihuman_train.watch import WatchConfig

BUCKET, SAMPLES = Bucket(49, 256, 256), 128
WORDS, BYTES = 48, 12


def main() -> int:
    """Measure and print one row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        row = measure(Path(folder), arguments.batch, arguments.steps)
    report.show("Data of the small recipe", [row])
    if arguments.save:
        report.save("data_wait", [row])
    return 0


def measure(folder: Path, batch: int, steps: int) -> dict[str, Any]:
    """Share of the steps' time that is spent waiting, and seconds that a whole batch takes to read."""
    recipe = stage1.small()
    write_data(folder / "data")
    config = shortened(
        replace(
            recipe,
            vae=str(report.ROOT / "packages/omnihuman-infer/src/omnihuman_infer/pretrained/tiny"),
            data=str(folder / "data"),
            stream=replace(recipe.stream, batch=BatchConfig(batch_size=batch, multiple=batch), threads=1),
            run=replace(recipe.run, batch_size=batch, accumulate=1, device="cpu", precision="fp32"),
            watch=WatchConfig(every=steps),
        ),
        steps,
    )
    run_stage(config, folder / "run")
    (row,) = (json.loads(line) for line in (folder / "run" / "watch.jsonl").read_text().splitlines())
    whole = replace(config.stream, batch=BatchConfig(batch_size=recipe.run.batch_size))
    stream = FlowStream(folder / "data", whole, recipe.segment, recipe.stages, seed=0, pose_extractor=SKELETON)
    seconds = report.in_turns({"read": lambda: stream.read(0)}, 5)["read"]
    return {
        "batch": batch,
        "step, s": row["speed/step_seconds"],
        "share waited": row["speed/data_wait"],
        f"read {recipe.run.batch_size} samples, s": report.median(seconds),
    }


def write_data(folder: Path) -> None:
    """Encoded clips of random numbers in the shapes that the recipe takes."""
    members = states(BUCKET, (4, 768), (WORDS, BYTES))
    words = torch.randint(1, 256, (WORDS, BYTES))
    members["text.safetensors"] = save({"values": words, "mask": torch.ones(WORDS, dtype=torch.bool)})
    texts, sounds = ByteTextExtractorConfig(max_words=WORDS, max_bytes=BYTES), Wav2Vec2Config.base("unused")
    made_by = {
        "text": {"plugin": "text_bytes", "config": tomllib.loads(to_toml(texts))},
        "audio": {"plugin": "wav2vec2", "config": tomllib.loads(to_toml(sounds))},
    }
    recipe = {"latent_spec": SPEC, "text_length": WORDS, "extractors": made_by}
    data_set(folder, STATES, BUCKET, SAMPLES, lambda _: members, recipe)


if __name__ == "__main__":
    sys.exit(main())
