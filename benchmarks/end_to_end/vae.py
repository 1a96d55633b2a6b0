"""VAE decode and encode against diffusers: same weights, in turns, medians of CPU seconds.

    python benchmarks/end_to_end/vae.py [--models hunyuan_video,wan] [--narrow 4] [--repeats 3] [--save]

Weights are random, so that nothing has to be downloaded: time and memory do not depend on their values. ``--narrow``
divides the widths of the published models. Two kinds of comparisons per model:

* decode and encode of a few frames that both do whole;
* a longer clip, decoded and encoded as a stream, handed on piece by piece, and in tiles, against diffusers' default
  tiling. Each way runs in a process of its own, in turns, and its peak memory is what it takes above what the process
  held.

torch's own path for 3D convolutions is several times as slow for small inputs as for large ones, and diffusers takes it
at these sizes in places; ours never does. At full size the difference is smaller: ``--narrow 1`` where there is time.

Before anything is timed, both must agree on the untiled result; a difference ends the run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import report
import torch

from omnihuman_vae.adapters import HunyuanVideoVAE, WanVAE
from omnihuman_vae.adapters.hunyuan_config import hunyuan_video
from omnihuman_vae.adapters.wan_config import wan_2_1

TOLERANCE = 1e-5

# Latent frames, height and width of what is done whole.
PICTURE = (2, 16, 16)
# A quarter of 480 x 832, with diffusers' tiles (256 px, 192 px apart) scaled alike; time keeps its default tiles.
CLIP = (5, 15, 26)
TILE, STRIDE = 64, 48

# Pixels of our tiles; there is no overlap to choose.
OUR_TILE = 104

NO_MEMORY = dict.fromkeys(("diffusers_mib", "ours_mib", "memory_ratio"))

# How each way decodes or encodes the clip; the first of each is what the others are measured against.
DECODES = ("diffusers tiled", "stream", "tiles")
ENCODES = ("diffusers tiled encode", "encode stream", "encode tiles")


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


def way(name: str, theirs: Any, ours: HunyuanVideoVAE | WanVAE, clip: tuple[torch.Tensor, torch.Tensor]) -> object:
    """Decode or encode a clip in one of the ways."""
    latents, video = clip
    if name.startswith("diffusers"):
        theirs.enable_tiling(
            tile_sample_min_height=TILE,
            tile_sample_min_width=TILE,
            tile_sample_stride_height=STRIDE,
            tile_sample_stride_width=STRIDE,
        )
        return theirs.decode(latents) if name == DECODES[0] else theirs.encode(video)
    if name == "tiles":
        return ours.decode_tiled(latents, OUR_TILE)
    if name == "encode tiles":
        return ours.encode_tiled(video, OUR_TILE)
    if name == "stream":
        for _ in ours.decode_stream(latents.split(1, dim=2)):
            pass
        return None
    return list(ours.encode_stream(video.split([1, *(4,) * (latents.shape[2] - 1)], dim=2)))


def alone(model: str, narrow: int, name: str) -> tuple[float, float]:
    """CPU seconds and peak MiB of one way, in a process of its own, above what that held before."""
    command = [sys.executable, __file__, "--models", model, "--narrow", str(narrow), "--alone", name]
    # Large blocks go back when they are freed: what is resident is what is in use, on both sides.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 18)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    seconds, mib = map(float, done.stdout.split()[-2:])
    return seconds, mib


def measure_alone(model: str, narrow: int, name: str) -> tuple[float, float]:
    """What the process of :func:`alone` does."""
    theirs, ours = build(model, narrow)
    latents, video = inputs((2, 4, 4))
    # Libraries allocate on their first use.
    for vae in (theirs, ours):
        vae.decode(latents)
        vae.encode(video)
    clip = inputs(CLIP)
    # Linux: forget the peak of building the models.
    Path("/proc/self/clear_refs").write_text("5")
    before, started = resident_mib("VmRSS"), time.process_time()
    way(name, theirs, ours, clip)
    return time.process_time() - started, resident_mib("VmHWM") - before


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
        seconds = report.in_turns({"diffusers": a, "ours": b}, repeats)
        medians = {f"{name}_s": report.median(values) for name, values in seconds.items()}
        speedup, *_ = report.ratios(seconds["diffusers"], seconds["ours"])
        rows.append({"model": model, "what": what, **medians, "speedup": speedup, **NO_MEMORY})
    for names in (DECODES, ENCODES):
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for _ in range(max(repeats // 3, 1)):
            for name in names:
                results[name].append(alone(model, narrow, name))
        medians = {
            name: [statistics.median(values) for values in zip(*runs, strict=True)] for name, runs in results.items()
        }
        base_s, base_mib = medians.pop(names[0])
        for name, (ours_s, ours_mib) in medians.items():
            rows.append(
                {
                    "model": model,
                    "what": f"clip, {name}",
                    "diffusers_s": round(base_s, 3),
                    "ours_s": round(ours_s, 3),
                    "speedup": round(base_s / ours_s, 3),
                    "diffusers_mib": round(base_mib),
                    "ours_mib": round(ours_mib),
                    "memory_ratio": round(ours_mib / base_mib, 3),
                }
            )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="hunyuan_video,wan")
    parser.add_argument("--narrow", type=int, default=4, help="divides the widths of the published models")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    parser.add_argument("--alone", choices=[*DECODES, *ENCODES], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    models = arguments.models.split(",")
    with torch.inference_mode():
        if arguments.alone:
            print(*measure_alone(models[0], arguments.narrow, arguments.alone))
            return 0
        rows = [row for model in models for row in measure(model, arguments.narrow, arguments.repeats)]
    report.show("VAE, seconds (medians) and MiB", rows)
    if arguments.save:
        report.save("vae", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
