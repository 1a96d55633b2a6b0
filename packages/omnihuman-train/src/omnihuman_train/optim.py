"""Optimisers and the learning-rate schedule."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from omnihuman_train.config import OptimizerConfig
from omnihuman_train.distributed.muon import ShardedMuon


def lr_factor(config: OptimizerConfig, step: int, steps: int) -> float:
    """Learning rate of ``step`` (from 0) as a share of the peak: linear warm-up, constant, linear decay to zero."""
    warm = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    decay_steps = round(config.decay_fraction * steps)
    left = (steps - step) / decay_steps if decay_steps else 1.0
    return min(warm, left, 1.0)


class OptimizerGroup:
    """One or two torch optimisers that step together."""

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self.config = config
        matrices, embeddings, vectors = _split(model.named_parameters())
        decay = config.weight_decay
        self.optimizers: list[torch.optim.Optimizer] = []
        rest = [
            {"params": embeddings + vectors, "weight_decay": 0.0},
            *([] if config.name == "muon" else [{"params": matrices, "weight_decay": decay}]),
        ]
        self.optimizers.append(torch.optim.AdamW(rest, lr=config.lr, betas=config.betas, fused=True))
        if config.name == "muon" and matrices:
            kind = ShardedMuon if isinstance(matrices[0], DTensor) else torch.optim.Muon
            self.optimizers.append(
                kind(matrices, lr=config.muon_lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
            )
        self._peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]

    def step(self, factor: float) -> None:
        """Update the weights at ``factor`` times the peak learning rate, then clear the gradients."""
        for optimizer, peaks in zip(self.optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def _split(
    named: Iterable[tuple[str, nn.Parameter]],
) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Matrices inside blocks, other matrices and kernels, and vectors."""
    matrices, embeddings, vectors = [], [], []
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2:
            vectors.append(parameter)
        elif parameter.ndim == 2 and "blocks." in name:
            matrices.append(parameter)
        else:
            embeddings.append(parameter)
    return matrices, embeddings, vectors
