"""DiT forward against diffusers' HunyuanVideo: same weights, same process, interleaved, medians of CPU seconds.

    python benchmarks/end_to_end/dit_forward.py [--widths 256,512,1536] [--repeats 7] [--save]

Weights are random; one double- and two single-stream blocks with HunyuanVideo's head width stand for the whole stack.
Before anything is timed, both must agree; a difference ends the run. Text has no padding on either side.

``most`` is how many times faster a forward could be that spent time on nothing but the matrix products, attention and
GELU that both models call in torch: their share of diffusers' time bounds what can be won around them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from diffusers import HunyuanVideoTransformer3DModel
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from omnihuman_core.contracts import Conditioning, TextCondition
from omnihuman_core.mmdit import MMDiT
from omnihuman_core.mmdit.presets import hunyuan_video
from omnihuman_core.mmdit.state_dict_adapter import HunyuanVideoDiffusersAdapter

RESULTS = Path(__file__).parents[1] / "results"
TOLERANCE = 1e-5
SHARED = ("::addmm", "::mm", "::bmm", "::gelu", "attention_for_cpu")
HEAD_DIM, DOUBLE, SINGLE, TEXT_DIM, TEXT_TOKENS = 128, 1, 2, 512, 64
LATENTS = (1, 16, 8, 32, 32)  # 2,048 video tokens


def main() -> int:
    """Measure every width and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", default="256,512,1536")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(int(width), arguments.repeats) for width in arguments.widths.split(",")]
    table = Table(title="DiT forward, seconds, median")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    if arguments.save:
        facts = {
            "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "torch": torch.__version__,
            "command": "python benchmarks/end_to_end/dit_forward.py " + " ".join(sys.argv[1:]),
        }
        path = RESULTS / f"dit_forward_cpu_{datetime.now(UTC):%Y%m}.jsonl"
        path.write_text("".join(json.dumps({**facts, **row}) + "\n" for row in rows))
    return 0


@torch.inference_mode()
def measure(width: int, repeats: int) -> dict[str, float]:
    """Both models at one width, in fp32."""
    public, ours = models(width)
    generator = torch.Generator().manual_seed(0)
    latents, sigma = torch.randn(LATENTS, generator=generator), torch.tensor([0.5])
    tokens = torch.randn(1, TEXT_TOKENS, TEXT_DIM, generator=generator)
    text = TextCondition(
        tokens=tokens,
        mask=torch.ones(1, TEXT_TOKENS, dtype=torch.bool),
        pooled=torch.randn(1, 768, generator=generator),
    )

    def theirs() -> torch.Tensor:
        mask = text.mask.to(latents.dtype)
        scale = torch.full_like(sigma, 6000.0)
        result: torch.Tensor = public(latents, 1000 * sigma, tokens, mask, text.pooled, guidance=scale).sample
        return result

    def own() -> torch.Tensor:
        return ours(latents, sigma, Conditioning(text=text))

    error = float((own() - theirs()).norm() / theirs().norm())
    if error > TOLERANCE:
        raise SystemExit(f"width {width}: the outputs differ by {error:.1e}; nothing is timed")
    seconds: dict[str, list[float]] = {"diffusers": [], "ours": []}
    for _ in range(repeats):
        for name, run in (("diffusers", theirs), ("ours", own)):
            seconds[name].append(timed(run))
    medians = {name: round(statistics.median(values), 4) for name, values in seconds.items()}
    ratio = statistics.median(a / b for a, b in zip(seconds["diffusers"], seconds["ours"], strict=True))
    most = round(1 / statistics.median(shared_part(theirs) for _ in range(3)), 3)
    return {"width": width, **medians, "times faster": round(ratio, 3), "most": most, "relative error": error}


def timed(run: Callable[[], torch.Tensor]) -> float:
    """CPU seconds of one call, which other load on the core changes little."""
    started = time.process_time()
    run()
    return time.process_time() - started


def shared_part(run: Callable[[], torch.Tensor]) -> float:
    """Share of the time that torch's matrix products, attention and GELU take."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    return sum(time for key, time in times.items() if key.endswith(SHARED)) / sum(times.values())


def models(width: int) -> tuple[HunyuanVideoTransformer3DModel, MMDiT]:
    """The public model and ours with its weights."""
    torch.manual_seed(0)
    public = HunyuanVideoTransformer3DModel(
        num_attention_heads=width // HEAD_DIM,
        attention_head_dim=HEAD_DIM,
        num_layers=DOUBLE,
        num_single_layers=SINGLE,
        num_refiner_layers=1,
        text_embed_dim=TEXT_DIM,
    ).eval()
    config = replace(
        hunyuan_video(),
        hidden_size=width,
        num_heads=width // HEAD_DIM,
        num_double_blocks=DOUBLE,
        num_single_blocks=SINGLE,
        text_refiner_depth=1,
        text_dim=TEXT_DIM,
    )
    ours = MMDiT(config).eval()
    ours.load_state_dict(HunyuanVideoDiffusersAdapter(config).to_native(public.state_dict()))
    return public, ours


if __name__ == "__main__":
    sys.exit(main())
