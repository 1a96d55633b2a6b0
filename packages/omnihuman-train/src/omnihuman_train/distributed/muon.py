"""Muon on sharded matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz

from omnihuman_train.distributed.shards import fill, whole


class ShardedMuon(torch.optim.Muon):
    """Torch's Muon, with each update gathered before it is made orthogonal.

    Torch would multiply the shards in bf16 and add up the products, which is another update than that of one process.
    Here a matrix is orthogonalised whole, on every process, one after the other; momentum and weights stay sharded.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update, as torch's for the whole matrices.

        Raises:
            ValueError: a closure is given; there is nothing here that evaluates one.
        """
        if closure is not None:
            raise ValueError("ShardedMuon takes no closure")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                buffer = state["momentum_buffer"]
                buffer.lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
                orthogonal = _zeropower_via_newtonschulz(
                    whole(update), group["ns_coefficients"], group["ns_steps"], group["eps"]
                )
                rate = _adjust_lr(group["lr"], group["adjust_lr_fn"], parameter.shape)
                change = torch.zeros_like(parameter)
                fill(change, orthogonal)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(change, alpha=-rate)
