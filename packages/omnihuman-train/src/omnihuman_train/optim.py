"""Optimisers and the learning-rate schedule."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from omnihuman_train.config import OptimizerConfig

Named = tuple[str, nn.Parameter]


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
        rest = [_group(embeddings + vectors, 0.0), *([] if config.name == "muon" else [_group(matrices, decay)])]
        self.optimizers.append(torch.optim.AdamW(rest, lr=config.lr, betas=config.betas, fused=True))
        if config.name == "muon" and matrices:
            # Made of private parts of torch, which a run without it shall not depend on.
            from omnihuman_train.distributed.muon import ShardedMuon

            kind = ShardedMuon if isinstance(matrices[0][1], DTensor) else torch.optim.Muon
            self.optimizers.append(kind([_group(matrices, decay)], lr=config.muon_lr, adjust_lr_fn="match_rms_adamw"))
        self._peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]

    def step(self, factor: float) -> None:
        """Update the weights at ``factor`` times the peak learning rate, then clear the gradients."""
        for optimizer, peaks in zip(self.optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def _group(named: list[Named], weight_decay: float) -> dict[str, Any]:
    """A group of torch's, which may be empty, with the names that the state of an optimiser is saved by."""
    names, parameters = [name for name, _ in named], [parameter for _, parameter in named]
    return {"params": parameters, "param_names": names, "weight_decay": weight_decay}


def _split(named: Iterable[Named]) -> tuple[list[Named], list[Named], list[Named]]:
    """Matrices inside blocks, other matrices and kernels, and vectors, each with its name."""
    matrices, embeddings, vectors = [], [], []
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2:
            vectors.append((name, parameter))
        elif parameter.ndim == 2 and "blocks." in name:
            matrices.append((name, parameter))
        else:
            embeddings.append((name, parameter))
    return matrices, embeddings, vectors
