"""Loss on samples that are never trained on: the same samples, noise and sigmas each time, so that curves compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from omnihuman_core.contracts import LossOutput
from omnihuman_train.data.stream import FlowStream
from omnihuman_train.distributed.exchange import layout, same_parts
from omnihuman_train.distributed.fsdp import loss_function
from omnihuman_train.distributed.mesh import World
from omnihuman_train.ema import Ema
from omnihuman_train.loop import on_device
from omnihuman_train.objective import FlowObjective

# The middle of each quarter of [0, 1].
SIGMAS = (0.125, 0.375, 0.625, 0.875)


class ValidationLoss:
    """Flow-matching loss of held-out samples at four noise levels, for the weights of the moment and for their average.

    Every sample is looked at under each set of conditions that the stage trains, from weak to strong (text; text and
    audio; all three), if it has them all: the sets compare on the same samples. Of a sharded model all ranks take part.

    Args:
        objective: Gives the losses.
        parts: What this process computes of a batch of held-out samples, part by part; all conditions kept.
        model: The model that is trained.
        active: Conditions of the stage, weak to strong.
        every: Steps between measurements.
        batches: Batches of a measurement, the first ones of ``parts``.
        world: Processes of the run.
        precision: ``bf16`` computes under autocast.
    """

    def __init__(
        self,
        objective: FlowObjective,
        parts: Sequence[FlowStream],
        *,
        model: nn.Module,
        active: Sequence[str],
        every: int,
        batches: int,
        world: World,
        precision: str,
    ) -> None:
        self._objective, self._parts, self._model = objective, parts, model
        self._sets = [tuple(active[:count]) for count in range(1, len(active) + 1)]
        self._every, self._batches, self._world, self._bf16 = every, batches, world, precision == "bf16"

    def __call__(self, done: int, ema: Ema) -> dict[str, Tensor]:
        """Scalars after ``done`` steps, none where no measurement is due.

        ``validation/loss``, ``validation/<conditions>`` and ``validation/sigma0`` to ``sigma3``, and the same of the
        average as ``validation_ema/``.
        """
        if done % self._every:
            return {}
        was_training = self._model.training
        self._model.eval()
        found = self._measured("validation")
        with ema.in_place_of_weights(self._model):
            found |= self._measured("validation_ema")
        self._model.train(was_training)
        return found

    @torch.no_grad()
    def _measured(self, name: str) -> dict[str, Tensor]:
        mine: dict[str, list[float]] = {}
        compute = loss_function(self._model, self._losses)
        for number in range(self._batches):
            for part in self._parts:
                batch = on_device(part.read(number), self._world.device)
                batch = dict(same_parts(batch, self._world.gather(layout(batch)), self._world.device))
                for kept in self._sets:
                    for quarter, sigma in enumerate(SIGMAS):
                        losses, complete = self._of(compute, batch, kept, sigma)
                        for entry in ("loss", "+".join(kept), f"sigma{quarter}"):
                            mine.setdefault(entry, []).extend(losses[complete].tolist())
        if isinstance(self._model, FSDPModule):
            # The root's weights stay gathered after a forward; the next one has others.
            self._model.reshard()
        everyone = self._world.gather(mine)[:: self._world.sequence]
        joined = {entry: [value for of in everyone for value in of.get(entry, [])] for entry in mine}
        return {f"{name}/{entry}": torch.tensor(values).mean() for entry, values in joined.items() if values}

    def _of(self, compute: Any, batch: dict[str, Any], kept: Sequence[str], sigma: float) -> tuple[Tensor, Tensor]:
        """Losses of the samples, and which of them have all the conditions of the set."""
        fit: Mapping[str, Tensor] = batch["keep"]
        keep = {
            name: mask if name in kept or name == "reference" else torch.zeros_like(mask) for name, mask in fit.items()
        }
        level = torch.full((len(batch["latents"]),), sigma, device=self._world.device)
        with torch.autocast(self._world.device.type, torch.bfloat16, enabled=self._bf16):
            losses = compute({**batch, "keep": keep, "sigma": level}).loss
        return losses.cpu(), torch.stack([fit[name] for name in kept]).all(0)

    def _losses(self, model: Any, batch: Mapping[str, Any]) -> LossOutput:
        # In the place of a loss: what is called through a sharded model returns one of these.
        return LossOutput(loss=self._objective.sample_losses(model, batch)[0])
