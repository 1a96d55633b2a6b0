"""VAE decode and encode against diffusers: same weights, same process, interleaved, medians of CPU seconds.

    python benchmarks/end_to_end/vae_decode.py [--models hunyuan_video,wan] [--narrow 4] [--repeats 3] [--save]

Weights are random, so that nothing has to be downloaded: time and memory do not depend on their values. ``--narrow``
divides the widths of the published models. Three comparisons per model:

* decode and encode of a picture that both do whole;
* a longer clip: our stream, with the output handed on piece by piece, against diffusers' default tiling;
* the peak memory of that clip, each in a process of its own, above what the process held before.

Before anything is timed, both must agree on the untiled result; a difference ends the run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from omnihuman_vae.adapters import HunyuanVideoVAE, WanVAE
from omnihuman_vae.adapters.hunyuan_config import hunyuan_video
from omnihuman_vae.adapters.wan_config import wan_2_1
from omnihuman_vae.tiling import TiledVideoVAE, TilingConfig

RESULTS = Path(__file__).parents[1] / "results"
TOLERANCE = 1e-5

# Latent frames, height and width of what is done whole.
PICTURE = (2, 16, 16)
# A quarter of 480 x 832, with diffusers' tiles (256 px, 192 px apart) scaled alike; time keeps its default tiles.
CLIP = (9, 15, 26)
TILE, STRIDE = 64, 48

# How each way decodes the clip.
WAYS = ("diffusers tiled", "stream", "tiles, each streamed")


class Streamed:
    """Decodes whole clips as a stream of single latent frames, so that one tile has one set of caches at a time."""

    def __init__(self, vae: HunyuanVideoVAE | WanVAE) -> None:
        self.vae = vae
        self.latent_spec = vae.latent_spec
        self.streaming_tolerance = vae.streaming_tolerance
        self.encode = vae.encode
        self.decode_stream = vae.decode_stream

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.cat(list(self.vae.decode_stream(latents.split(1, dim=2))), dim=2)


def build(model: str, narrow: int) -> tuple[Any, HunyuanVideoVAE | WanVAE]:
    """Public implementation and ours with the same random weights."""
    import diffusers

    torch.manual_seed(0)
    theirs: Any
    ours: HunyuanVideoVAE | WanVAE
    if model == "hunyuan_video":
        channels = tuple(width // narrow for width in hunyuan_video().channels)
        theirs = diffusers.AutoencoderKLHunyuanVideo(block_out_channels=channels)
        ours = HunyuanVideoVAE(replace(hunyuan_video(), channels=channels))
    else:
        base = wan_2_1().base_channels // narrow
        theirs = diffusers.AutoencoderKLWan(base_dim=base)
        ours = WanVAE(replace(wan_2_1(), base_channels=base))
    ours.load_state_dict(theirs.state_dict())
    return theirs.eval(), ours.eval()


def inputs(size: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents ``(1, 16, t, h, w)`` and video ``(1, 3, T, H, W)`` of one size."""
    frames, height, width = size
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 16, frames, height, width, generator=generator)
    video = torch.rand(1, 3, 1 + 4 * (frames - 1), 8 * height, 8 * width, generator=generator) * 2 - 1
    return latents, video


def paired(theirs: Callable[[], object], ours: Callable[[], object], repeats: int) -> dict[str, float]:
    """Medians of CPU seconds of both, run in turns; other load on the machine changes them little."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for function, times in zip((theirs, ours), seconds, strict=True):
            started = time.process_time()
            function()
            times.append(time.process_time() - started)
    theirs_s, ours_s = (statistics.median(times) for times in seconds)
    return {"diffusers_s": round(theirs_s, 3), "ours_s": round(ours_s, 3), "speedup": round(theirs_s / ours_s, 3)}


def way(name: str, theirs: Any, ours: HunyuanVideoVAE | WanVAE, latents: torch.Tensor) -> Callable[[], object]:
    """One of :data:`WAYS` to decode a clip."""
    if name == "diffusers tiled":
        theirs.enable_tiling(
            tile_sample_min_height=TILE,
            tile_sample_min_width=TILE,
            tile_sample_stride_height=STRIDE,
            tile_sample_stride_width=STRIDE,
        )
        return lambda: theirs.decode(latents)
    if name == "tiles, each streamed":
        tiled = TiledVideoVAE(Streamed(ours), TilingConfig(tile_size=TILE, overlap=TILE - STRIDE))
        return lambda: tiled.decode(latents)

    def stream() -> None:
        for _ in ours.decode_stream(latents.split(1, dim=2)):
            pass

    return stream


def peak_mib(model: str, narrow: int, name: str) -> float:
    """Peak memory of one way above what the process held before, in MiB."""
    command = [sys.executable, __file__, "--models", model, "--narrow", str(narrow), "--peak-of", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_peak(model: str, narrow: int, name: str) -> float:
    theirs, ours = build(model, narrow)
    small = inputs((2, 4, 4))[0]
    # Libraries allocate on their first use.
    theirs.decode(small)
    ours.decode(small)
    run = way(name, theirs, ours, inputs(CLIP)[0])
    # Linux: forget the peak of building the models.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_mib("VmRSS")
    run()
    return resident_mib("VmHWM") - before


def resident_mib(field: str) -> float:
    """Resident memory of this process now (``VmRSS``) or at its peak (``VmHWM``)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise SystemExit("peak memory can be measured on Linux only")


def agree(model: str, theirs: Any, ours: HunyuanVideoVAE | WanVAE) -> None:
    latents, _ = inputs((2, 4, 4))
    mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in ours.config.statistics)
    expected, found = theirs.decode(latents * std + mean).sample, ours.decode(latents)
    found = found.clamp(-1, 1) if model == "wan" else found
    error = float((found - expected).norm() / expected.norm())
    if error > TOLERANCE:
        raise SystemExit(f"{model}: results differ by {error:.1e}, nothing is timed")


def measure(model: str, narrow: int, repeats: int) -> list[dict[str, Any]]:
    theirs, ours = build(model, narrow)
    agree(model, theirs, ours)
    rows: list[dict[str, Any]] = []
    latents, video = inputs(PICTURE)
    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "decode whole": (lambda: theirs.decode(latents), lambda: ours.decode(latents)),
        "encode whole": (lambda: theirs.encode(video), lambda: ours.encode(video)),
    }
    for what, (a, b) in pairs.items():
        rows.append({"model": model, "what": what, **paired(a, b, repeats)})
    clip, _ = inputs(CLIP)
    base = WAYS[0]
    peaks = {name: peak_mib(model, narrow, name) for name in WAYS}
    for name in WAYS[1:]:
        times = paired(way(base, theirs, ours, clip), way(name, theirs, ours, clip), max(repeats // 3, 1))
        memory = {"diffusers_mib": round(peaks[base]), "ours_mib": round(peaks[name])}
        rows.append({"model": model, "what": f"decode clip, {name}", **times, **memory})
        rows[-1]["memory_ratio"] = round(peaks[name] / peaks[base], 3)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    columns = ("model", "what", "diffusers_s", "ours_s", "speedup", "diffusers_mib", "ours_mib", "memory_ratio")
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(str(row.get(column, "")) for column in columns) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="hunyuan_video,wan")
    parser.add_argument("--narrow", type=int, default=4, help="divides the widths of the published models")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    parser.add_argument("--peak-of", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    models = arguments.models.split(",")
    with torch.inference_mode():
        if arguments.peak_of:
            print(measure_peak(models[0], arguments.narrow, arguments.peak_of))
            return 0
        rows = [row for model in models for row in measure(model, arguments.narrow, arguments.repeats)]
    text = (
        f"Widths of the published models divided by {arguments.narrow}, fp32, one CPU thread, medians of "
        f"{arguments.repeats} interleaved runs (clips: {max(arguments.repeats // 3, 1)}), torch {torch.__version__}.\n"
        f"Latents: whole {PICTURE}, clip {CLIP}.\n\n{table(rows)}\n"
    )
    print(text)
    if arguments.save:
        RESULTS.mkdir(exist_ok=True)
        stem = RESULTS / f"vae_decode_cpu_{datetime.now(UTC):%Y%m}"
        stem.with_suffix(".md").write_text(f"# VAE against diffusers\n\n{text}", encoding="utf-8")
        stem.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
