"""Low-rank adaptation (LoRA, arXiv 2106.09685) by ``peft``: fine-tune a large backbone by a small share of weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

# The projections of attention and, in single blocks, of the MLP beside it.
BLOCK_PROJECTIONS = r".*(double|single)_blocks\.\d+\.((video|text)\.(qkv|out)|linear1|linear2)"


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """What LoRA adds and what else is trained.

    Attributes:
        rank: Rank ``r`` of each update.
        alpha: The update is scaled by ``alpha / rank``.
        targets: Pattern that the whole name of a linear layer must match.
        full: Pattern of parameters that are trained whole besides: the condition paths, which start fresh, with the
            vectors of segments and of no text.
    """

    rank: int = 16
    alpha: int = 16
    targets: str = BLOCK_PROJECTIONS
    full: str = (
        r"(audio_encoder|pose_encoder|mouth_probe)\..*|.*\.audio\..*|.*patch_embed\.pose.*"
        r"|backbone\.segment_embed|text_encoder\.null_token"
    )

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora.rank must be at least 1, got {self.rank}")
        if not self.alpha > 0:
            raise ValueError(f"lora.alpha must be positive, got {self.alpha}")


def add_lora(model: nn.Module, settings: LoraSettings) -> int:
    """Freeze ``model`` but for ``settings.full`` and add low-rank updates, in place; they start at zero.

    Args:
        model: The trained module.
        settings: Ranks and names.

    Returns:
        Number of parameters that are trained.

    Raises:
        ValueError: ``peft`` is missing, or no layer matches.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError("lora needs the package peft: pip install 'omnihuman-train[lora]'") from error
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not any(re.fullmatch(settings.targets, name) for name in names):
        raise ValueError(
            f"lora.targets {settings.targets!r} matches no linear layer; there are, for example, {names[:4]}"
        )
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=settings.targets)
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or re.fullmatch(settings.full, name) is not None)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def merged_state(state: Mapping[str, Tensor], settings: LoraSettings) -> dict[str, Tensor]:
    """State of the plain model: each update added to the weight that it belongs to, ``W + (alpha / r) B A``.

    Args:
        state: State dict of a model that :func:`add_lora` has changed.
        settings: What it was changed with.
    """
    merged: dict[str, Tensor] = {}
    for name, value in state.items():
        if ".lora_" in name:
            continue
        layer, base, kind = name.rpartition(".base_layer.")
        if base and kind == "weight":
            down, up = (state[f"{layer}.lora_{part}.default.weight"].float() for part in "AB")
            value = (value.float() + settings.alpha / settings.rank * (up @ down)).to(value.dtype)
        merged[f"{layer}.{kind}" if base else name] = value
    return merged
