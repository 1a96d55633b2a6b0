"""Train and measure the small model under other data, orders and ratios of conditions (the paper's table 1, in small).

    python benchmarks/omni_conditions/run.py --out runs/omni [--variants text_0,ipa,...] [--seeds 3] [--steps 450]

Needs the encoded clips and the VAE of a run of the recipe `tiny` (``--run runs/tiny``, parts render, vae, encode and,
if it has one, decoder). Trains one thing at a time on the threads of ``OMP_NUM_THREADS``; the same command goes on
where it stopped. A row is appended to ``--results`` as soon as it is measured; table and plot are drawn anew.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# A script's own folder is on the path, its package's is not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console

from omni_conditions.generation import generate, heldout_clips, through_vae
from omni_conditions.measures import measure
from omni_conditions.report import Row, as_markdown, as_svg
from omni_conditions.training import load_weights, train_variant
from omni_conditions.variants import CEILING, VARIANTS, Protocol, trainings
from omnihuman_core.checkpoint import load_safetensors
from omnihuman_train.model import build

RESULTS = Path(__file__).resolve().parents[1] / "results"


def parser() -> argparse.ArgumentParser:
    """The command line; every field of the protocol is an option."""
    top = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    top.add_argument("--out", type=Path, required=True, help="folder of the trainings")
    top.add_argument("--run", type=Path, default=Path("runs/tiny"), help="run with encoded clips and a VAE")
    top.add_argument("--variants", default=",".join(VARIANTS), help=f"out of {','.join(VARIANTS)}")
    top.add_argument("--seeds", type=int, default=1, help="seeds of every variant, from 0 on")
    top.add_argument("--results", type=Path, help="rows (default: benchmarks/results/omni_conditions_cpu_YYYYMM.jsonl)")
    top.add_argument("--report", action="store_true", help="draw table and plot from the rows, and train nothing")
    protocol = top.add_argument_group("protocol", "what every variant has in common; see `Protocol`")

    def add(option: str, field: str) -> None:
        default = getattr(Protocol(), field)
        protocol.add_argument(option, dest=field, type=type(default), default=default, help=f"default: {default}")

    add("--fit", "fit")
    add("--pool", "pool")
    add("--first-steps", "first_steps")
    add("--steps", "phase_steps")
    add("--batch-size", "batch_size")
    add("--width", "width")
    add("--double-blocks", "double_blocks")
    add("--single-blocks", "single_blocks")
    add("--learning-rate", "learning_rate")
    add("--clips", "clips")
    add("--num-steps", "num_steps")
    add("--guidance-scale", "guidance_scale")
    return top


def main(argv: list[str] | None = None) -> int:
    """Run what is missing; returns 0, or 2 where something is wrong."""
    arguments = parser().parse_args(argv)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        run(arguments)
    except (ValueError, FloatingPointError, OSError) as error:
        print(f"omni_conditions: {error}", file=sys.stderr)
        return 2
    return 0


def run(arguments: argparse.Namespace) -> None:
    """Train, measure and report.

    Raises:
        ValueError: an unknown variant, a protocol that is not the one of ``--out``, or a run without clips or VAE.
    """
    protocol = Protocol(**{name: getattr(arguments, name) for name in vars(Protocol())})
    chosen = arguments.variants.split(",")
    if unknown := [name for name in chosen if name not in VARIANTS]:
        raise ValueError(f"--variants: unknown {unknown}; known are {list(VARIANTS)}")
    if arguments.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {arguments.seeds}")
    results = arguments.results or RESULTS / f"omni_conditions_cpu_{datetime.now(UTC):%Y%m}.jsonl"
    console = Console(stderr=True)
    if not arguments.report:
        check_protocol(arguments.out, protocol)
        steps = protocol.first_steps + arguments.seeds * len(trainings(chosen)) * protocol.phase_steps
        console.print(f"{arguments.seeds * len(chosen)} rows, {steps} steps of {protocol.batch_size} samples in all")
        done = {(row["variant"], row["seed"]) for row in read_rows(results, protocol)}
        # All variants of a seed before the next seed: what is there can be read at any time.
        missing = [(CEILING, 0), *((name, seed) for seed in range(arguments.seeds) for name in chosen)]
        missing = [entry for entry in missing if entry not in done]
        if missing:
            vae, clips = load_vae(arguments.run), heldout_clips(protocol.clips)
        for name, seed in missing:
            started = time.monotonic()
            if name == CEILING:
                row = row_of(name, seed, protocol, through_vae(vae, clips), clips, audio_samples=0)
            else:
                folder = train_variant(VARIANTS[name], seed, protocol, arguments.run / "latents", arguments.out)
                frames = generate(load_weights(protocol, folder), vae, clips, protocol)
                row = row_of(name, seed, protocol, frames, clips, audio_samples=audio_samples(name, protocol))
            append(results, row)
            write_report(results, protocol)
            console.print(f"{name}, seed {seed}: lip sync r {row['lip_sync_r']}, {time.monotonic() - started:.0f} s")
    write_report(results, protocol)


def check_protocol(out: Path, protocol: Protocol) -> None:
    """Trainings of two protocols do not go into one folder.

    Raises:
        ValueError: the folder has another one's.
    """
    note = out / "protocol.json"
    if note.exists() and json.loads(note.read_text()) != vars(protocol):
        raise ValueError(f"{note}: made by another protocol; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(vars(protocol)))


def load_vae(run: Path) -> Any:
    """The VAE of a run: its further trained decoder where it has one.

    Raises:
        ValueError: the run has no VAE.
    """
    for part in ("decoder", "vae"):
        path = run / part / "final.safetensors"
        if path.exists():
            vae = build("video_vae", "causal", "tiny")
            vae.load_state_dict(load_safetensors(path))
            return vae.eval()
    raise ValueError(f"{run}: no VAE here; run the recipe's parts render, vae, encode and decoder first")


def audio_samples(name: str, protocol: Protocol) -> int:
    """Expected number of training samples that kept their voice."""
    variant = VARIANTS[name]
    fit_share = protocol.fit / (protocol.fit + round(variant.share * protocol.pool))
    kept = sum(ratios.audio for ratios in variant.phases)
    return round(protocol.phase_steps * protocol.batch_size * kept * fit_share)


def row_of(name: str, seed: int, protocol: Protocol, frames: Any, clips: Any, *, audio_samples: int) -> Row:
    """The row of one variant and seed."""
    means, per_clip = measure(frames, clips)
    return {
        "variant": name,
        "seed": seed,
        **{key: round(value, 5) for key, value in means.items()},
        "audio_samples": audio_samples,
        "protocol": vars(protocol),
        "hardware": f"{platform.machine()}, {torch.get_num_threads()} thread(s)",
        "torch": torch.__version__,
        # JSON has no NaN.
        "per_clip": {key: [round(v, 5) if v == v else None for v in values] for key, values in per_clip.items()},
    }


def append(results: Path, row: Row) -> None:
    """Add one row to the file."""
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(results: Path, protocol: Protocol) -> list[Row]:
    """Rows of this protocol; those of others stay in the file and out of the table."""
    lines = results.read_text().splitlines() if results.exists() else []
    return [row for row in map(json.loads, lines) if row["protocol"] == vars(protocol)]


def write_report(results: Path, protocol: Protocol) -> None:
    """Table and plot beside the rows.

    Raises:
        ValueError: there is no row of this protocol.
    """
    rows = read_rows(results, protocol)
    if not rows:
        raise ValueError(f"{results}: no row of this protocol yet")
    changed = [f"--{k.replace('_', '-')} {v}" for k, v in vars(protocol).items() if v != getattr(Protocol(), k)]
    seeds = 1 + max(row["seed"] for row in rows)
    command = " ".join(["python benchmarks/omni_conditions/run.py --out runs/omni", f"--seeds {seeds}", *changed])
    command = command.replace("--phase-steps", "--steps")
    results.with_suffix(".md").write_text(as_markdown(rows, command))
    results.with_suffix(".svg").write_text(as_svg(rows))


if __name__ == "__main__":
    sys.exit(main())
