"""Training step over its own forward, and against diffusers' HunyuanVideo in the same trainer: paired, CPU seconds.

    OMP_NUM_THREADS=1 python benchmarks/end_to_end/train_step.py [--width 256] [--frames 8] [--repeats 5] [--save]

One double- and two single-stream blocks with HunyuanVideo's head width stand for the whole stack; weights are random
and the same in both models. A step is forward, loss, backward, clipping, AdamW and the moving average, in fp32. Times
are user CPU seconds of this process, measured in turns; ratios are medians of pairs. Beside each ratio stands what it
would be if every operation took equally long. diffusers' blocks are measured twice: both models keep all activations,
and each recomputes them in its own way, diffusers' whole blocks, ours all but the attention (``selective``). A caption
of 64 tokens comes in two ways, as in ``dit_forward.py``: alone, and as each is given it, for diffusers filled up to 256
tokens under a mask, for ours without the padding, which the data stream leaves out. Nothing is timed before losses and
gradients of all agree.
"""

from __future__ import annotations

import argparse
import copy
import resource
import sys
from collections.abc import Callable
from typing import Any

import report
import torch
from dit_forward import LATENTS, PADDED, TEXT_DIM, TEXT_TOKENS, models
from torch import Tensor, nn

from omnihuman_core.contracts import Conditioning, TextCondition
from omnihuman_core.mmdit import MMDiT, MMDiTConfig
from omnihuman_train.config import OptimizerConfig
from omnihuman_train.distributed.activation_checkpoint import checkpoint_blocks
from omnihuman_train.ema import Ema
from omnihuman_train.flops import Flops, executed_flops, forward_flops, sample_tokens, step_over_forward
from omnihuman_train.optim import OptimizerGroup

TOLERANCE = 1e-4
# Step over own forward, at most; our step against diffusers', at least.
GOALS = {"none": 3.9, "selective": 4.2, "full": 5.0}
FASTER = 1.1
# What of diffusers is compared with which of ours.
PAIRS = {"diffusers": "none", "checkpointed diffusers": "selective"}


def main() -> int:
    """Measure and print the ratios beside their goals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--frames", type=int, default=8, help="latent frames of 256 tokens each")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    arguments = parser.parse_args()
    sizes = arguments.width, arguments.frames
    rows = [*measure(*sizes, arguments.repeats), *measure_padded(*sizes, arguments.repeats)]
    report.show(f"Training step, width {arguments.width}, user CPU seconds, median", rows)
    if arguments.save:
        report.save("train_step", rows, key=("width", "tokens", "text"))
    return 0


class Trainer:
    """One model with its optimiser and average; ``forward`` predicts the velocity."""

    def __init__(self, model: nn.Module, forward: Callable[[nn.Module], Tensor], target: Tensor) -> None:
        self.model, self._forward, self._target = model.train(), forward, target
        self.optimizer, self.ema = OptimizerGroup(model, OptimizerConfig(lr=1e-5)), Ema(model, 0.999)
        self.steps = 0

    def forward(self) -> None:
        """A forward alone."""
        with torch.no_grad():
            self._forward(self.model)

    def loss(self) -> Tensor:
        """Mean squared error of the velocity."""
        return (self._forward(self.model) - self._target).square().mean()

    def step(self) -> None:
        """A whole step."""
        self.loss().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step(1.0)
        self.ema.update(self.model, self.steps)
        self.steps += 1


def measure(width: int, frames: int, repeats: int) -> list[dict[str, Any]]:
    """All ratios at one width and length, the caption alone."""
    trainers = build(width, frames, TEXT_TOKENS)
    seconds = timed(trainers, tuple(trainers), repeats, own_forward=True)
    flops = forward(trainers["none"].model.config, frames, TEXT_TOKENS)
    rows = []
    for mode, goal in GOALS.items():
        ratio, *_ = report.ratios(seconds[mode], seconds["forward"])
        rows.append(
            {
                "measure": f"step / own forward, checkpointing {mode}",
                "ratio": ratio,
                "goal": f"<= {goal}",
                "met": ratio <= goal,
                "by operations": round(step_over_forward(flops, mode), 3),
                "seconds": report.median(seconds[mode]),
                "baseline seconds": report.median(seconds["forward"]),
            }
        )
    return [
        {"width": width, "tokens": length(frames), "text": f"{TEXT_TOKENS} tokens", **row}
        for row in [*rows, *against(seconds, flops, flops)]
    ]


def measure_padded(width: int, frames: int, repeats: int) -> list[dict[str, Any]]:
    """Ratios to diffusers where the caption is filled up for it."""
    trainers = build(width, frames, PADDED)
    seconds = timed(trainers, (*PAIRS, *PAIRS.values()), repeats)
    flops = [forward(trainers["none"].model.config, frames, text) for text in (PADDED, TEXT_TOKENS)]
    text = f"{TEXT_TOKENS} of {PADDED} tokens"
    return [{"width": width, "tokens": length(frames), "text": text, **row} for row in against(seconds, *flops)]


def against(seconds: dict[str, list[float]], theirs: Flops, ours: Flops) -> list[dict[str, Any]]:
    """Rows of :data:`PAIRS`, given the operations of a forward of each."""
    rows = []
    for public, mode in PAIRS.items():
        ratio, *_ = report.ratios(seconds[public], seconds[mode])
        # A block that is recomputed whole costs diffusers what it costs ours.
        recomputed = "full" if mode == "selective" else mode
        operations = executed_flops(theirs, recomputed) / executed_flops(ours, mode)
        rows.append(
            {
                "measure": f"{public}' step / ours, checkpointing {mode}",
                "ratio": ratio,
                "goal": f">= {FASTER}",
                "met": ratio >= FASTER,
                "by operations": round(operations, 3),
                "seconds": report.median(seconds[mode]),
                "baseline seconds": report.median(seconds[public]),
            }
        )
    return rows


def timed(
    trainers: dict[str, Trainer], names: tuple[str, ...], repeats: int, *, own_forward: bool = False
) -> dict[str, list[float]]:
    """Seconds of the steps of ``names``, and of a forward of ours, in turns."""
    check(trainers)
    jobs: dict[str, Callable[[], None]] = {"forward": trainers["none"].forward} if own_forward else {}
    jobs |= {name: trainers[name].step for name in names}
    for job in jobs.values():
        job()
    return report.in_turns(jobs, repeats, clock=user_seconds)


def forward(config: MMDiTConfig, frames: int, text: int) -> Flops:
    """Operations of a forward over so many latent frames and text tokens."""
    sample = sample_tokens(
        config,
        latent_frames=frames,
        height=LATENTS[3],
        width=LATENTS[4],
        motion_latents=0,
        text=text,
        audio_per_frame=0,
        reference=False,
    )
    return forward_flops(config, sample)


def length(frames: int) -> int:
    """Tokens of the video and of a caption without padding."""
    return frames * LATENTS[3] * LATENTS[4] // 4 + TEXT_TOKENS


def build(width: int, frames: int, text_length: int) -> dict[str, Trainer]:
    """Our model under each kind of checkpointing, and the public one, all with the same weights and batch."""
    public, ours = models(width)
    generator = torch.Generator().manual_seed(0)
    latents, target = (torch.randn(*LATENTS[:2], frames, *LATENTS[3:], generator=generator) for _ in range(2))
    sigma = torch.tensor([0.5])
    text = TextCondition(
        tokens=torch.randn(1, text_length, TEXT_DIM, generator=generator),
        mask=torch.arange(text_length)[None] < TEXT_TOKENS,
        pooled=torch.randn(1, 768, generator=generator),
    )
    trimmed = text.trimmed()

    def theirs(model: nn.Module) -> Tensor:
        mask, scale = text.mask.to(latents.dtype), torch.full_like(sigma, 6000.0)
        result: Tensor = model(latents, 1000 * sigma, text.tokens, mask, text.pooled, guidance=scale).sample
        return result

    def own(model: nn.Module) -> Tensor:
        result: Tensor = model(latents, sigma, Conditioning(text=trimmed))
        return result

    trainers = {}
    for mode in ("none", "selective", "full"):
        model: MMDiT = copy.deepcopy(ours)
        checkpoint_blocks(model, mode)
        trainers[mode] = Trainer(model, own, target)
    recomputing = copy.deepcopy(public)
    recomputing.enable_gradient_checkpointing()
    for name, copied in zip(PAIRS, (public, recomputing), strict=True):
        trainers[name] = Trainer(copied, theirs, target)
    return trainers


def check(trainers: dict[str, Trainer]) -> None:
    """End the run where losses or gradient norms differ."""
    numbers = {}
    for name, trainer in trainers.items():
        loss = trainer.loss()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(trainer.model.parameters(), float("inf"))
        trainer.model.zero_grad(set_to_none=True)
        numbers[name] = (loss.item(), norm.item())
    first = numbers["none"]
    for name, found in numbers.items():
        if max(abs(a - b) / abs(b) for a, b in zip(found, first, strict=True)) > TOLERANCE:
            raise SystemExit(f"{name}: loss and gradient norm are {found}, not {first}; nothing is timed")


def user_seconds() -> float:
    """User CPU seconds of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


if __name__ == "__main__":
    sys.exit(main())
