"""Exponential moving average of the trained weights, kept in fp32; sharded as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from omnihuman_train.distributed.shards import fill, local, whole


class Ema:
    """Shadow weights ``shadow <- d * shadow + (1 - d) * weight`` with ``d = min(decay, (1 + step) / (10 + step))``.

    Frozen weights have none: their average is what they are.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        trained = ((name, value) for name, value in model.named_parameters() if value.requires_grad)
        self.shadow = {name: value.detach().float().clone() for name, value in trained}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Fold the weights after step ``step`` (from 0) into the average."""
        decay = min(self.decay, (1 + step) / (10 + step))
        weights = dict(model.named_parameters())
        shadow = [local(value) for value in self.shadow.values()]
        torch._foreach_lerp_(shadow, [local(weights[name].detach()).float() for name in self.shadow], 1 - decay)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over saved averages."""
        for name, value in self.shadow.items():
            fill(value, state[name])

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Put the averages into the model's parameters; frozen ones stay."""
        parameters = dict(model.named_parameters())
        for name, value in self.shadow.items():
            parameters[name].copy_(value)

    @contextmanager
    def in_place_of_weights(self, model: nn.Module) -> Iterator[None]:
        """The averages stand in the model's parameters meanwhile; then its weights are back, to the bit."""
        parameters = dict(model.named_parameters())
        weights = {name: parameters[name].detach().clone() for name in self.shadow}
        try:
            self.copy_to(model)
            yield
        finally:
            with torch.no_grad():
                for name, value in weights.items():
                    parameters[name].copy_(value)

    def whole_state(self, model: nn.Module, *, keep: bool = True) -> dict[str, Tensor]:
        """State dict of ``model`` with the averages as its weights, whole and on the CPU.

        Args:
            model: The averaged model; where it is sharded, all processes must call this.
            keep: False for a process that only helps the others to gather; it gets nothing.
        """
        state: dict[str, Tensor] = {}
        for name, value in model.state_dict().items():
            gathered = whole(self.shadow.get(name, value))
            if keep:
                state[name] = gathered.cpu()
        return state
