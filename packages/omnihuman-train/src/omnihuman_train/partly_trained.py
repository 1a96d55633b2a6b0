"""Floating-point operations of a model of which a part is frozen, with low-rank updates beside the frozen weights.

A frozen layer needs no gradient of its weight, and none of its input where nothing before it is trained. Which layers
those are is read off a forward on meta tensors: autograd itself says what needs a gradient.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from omnihuman_train.flops import Flops, SampleTokens, forward_flops
from omnihuman_train.model import OmniModel
from omnihuman_train.saved_tensors import meta_inputs

_LAYERS = (nn.Linear, nn.Conv3d)


@lru_cache(maxsize=64)
def partly_trained_flops(model: OmniModel, tokens: SampleTokens) -> Flops:
    """Operations of one forward of one sample, and what its backward is spared.

    Args:
        model: The trained module on ``meta``; its ``requires_grad`` says what is trained.
        tokens: Tokens of a sample.
    """
    config = model.backbone.config
    plain = forward_flops(config, tokens)
    if all(parameter.requires_grad for parameter in model.parameters()):
        return plain
    added = spared = 0.0

    def count(name: str, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal added, spared
        operations = 2.0 * output.numel() * layer.weight[0].numel()
        added += operations if ".lora_" in name else 0.0
        spared += operations * ((not layer.weight.requires_grad) + (not inputs[0].requires_grad))

    layers = [(name, layer) for name, layer in model.backbone.named_modules() if isinstance(layer, _LAYERS)]
    hooks = [layer.register_forward_hook(partial(count, name)) for name, layer in layers]
    with torch.device("meta"):
        latents, given = meta_inputs(config, tokens, 1, torch.float32)
        conditions: dict[str, Tensor | None] = {
            "text_encoder": None if given.text is None else given.text.tokens,
            "audio_encoder": None if given.audio is None else given.audio.tokens,
            "pose_encoder": None if given.pose is None else given.pose.features,
        }
        for name, condition in conditions.items():
            if condition is not None:
                # A condition is as trained as the encoder that it comes from.
                condition.requires_grad_(any(p.requires_grad for p in getattr(model, name).parameters()))
        model.backbone(latents, torch.empty(1), given)
    for hook in hooks:
        hook.remove()
    return replace(plain, linear=plain.linear + added, spared=spared)
