"""DiT forward against diffusers' HunyuanVideo: same weights, same process, interleaved, medians of CPU seconds.

    python benchmarks/end_to_end/dit_forward.py [--widths 256,512,1536] [--repeats 7] [--save]

Weights are random; one double- and two single-stream blocks with HunyuanVideo's head width stand for the whole stack.
Before anything is timed, both must agree; a difference ends the run. A caption of 64 tokens comes in two ways: alone,
and as the pipelines pass it. Theirs fills it up to 256 tokens under a mask, ours leaves the padding out.

``most`` is how many times faster a forward over the same tokens could be that spent time on nothing but the matrix
products, attention and GELU that both models call in torch: their share of diffusers' time bounds what can be won
around them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import report
import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch.profiler import ProfilerActivity, profile

from omnihuman_core.contracts import Conditioning, TextCondition
from omnihuman_core.mmdit import MMDiT
from omnihuman_core.mmdit.presets import hunyuan_video
from omnihuman_core.mmdit.state_dict_adapter import HunyuanVideoDiffusersAdapter

TOLERANCE = 1e-5
SHARED = ("::addmm", "::mm", "::bmm", "::gelu", "attention_for_cpu")
HEAD_DIM, DOUBLE, SINGLE, TEXT_DIM, TEXT_TOKENS = 128, 1, 2, 512, 64
PADDED = 256  # Tokens of a prompt in diffusers' HunyuanVideoPipeline
LATENTS = (1, 16, 8, 32, 32)  # 2,048 video tokens


def main() -> int:
    """Measure every width and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", default="256,512,1536")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for width in map(int, arguments.widths.split(",")):
        both = models(width)
        rows += [measure(width, *both, length, arguments.repeats) for length in (TEXT_TOKENS, PADDED)]
    report.show("DiT forward, seconds, median", rows)
    if arguments.save:
        report.save("dit_forward", rows)
    return 0


@torch.inference_mode()
def measure(
    width: int, public: HunyuanVideoTransformer3DModel, ours: MMDiT, length: int, repeats: int
) -> dict[str, Any]:
    """Both models at one width, in fp32, with text filled up to ``length`` tokens."""
    generator = torch.Generator().manual_seed(0)
    latents, sigma = torch.randn(LATENTS, generator=generator), torch.tensor([0.5])
    tokens = torch.randn(1, length, TEXT_DIM, generator=generator)
    text = TextCondition(
        tokens=tokens,
        mask=torch.arange(length)[None] < TEXT_TOKENS,
        pooled=torch.randn(1, 768, generator=generator),
    )

    # Once per text, not at every step.
    trimmed = text.trimmed()

    def theirs() -> torch.Tensor:
        mask = text.mask.to(latents.dtype)
        scale = torch.full_like(sigma, 6000.0)
        result: torch.Tensor = public(latents, 1000 * sigma, tokens, mask, text.pooled, guidance=scale).sample
        return result

    def own() -> torch.Tensor:
        return ours(latents, sigma, Conditioning(text=trimmed))

    error = float((own() - theirs()).norm() / theirs().norm())
    if error > TOLERANCE:
        raise SystemExit(f"width {width}: the outputs differ by {error:.1e}; nothing is timed")
    seconds = report.in_turns({"diffusers": theirs, "ours": own}, repeats)
    medians = {name: report.median(values) for name, values in seconds.items()}
    ratio, *_ = report.ratios(seconds["diffusers"], seconds["ours"])
    same = length == TEXT_TOKENS
    most = round(1 / statistics.median(shared_part(theirs) for _ in range(3)), 3) if same else None
    caption = f"{TEXT_TOKENS} tokens" if same else f"{TEXT_TOKENS} of {length} tokens"
    figures = {"times faster": ratio, "most": most, "relative error": float(f"{error:.1e}")}
    return {"width": width, "text": caption, **medians, **figures}


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
