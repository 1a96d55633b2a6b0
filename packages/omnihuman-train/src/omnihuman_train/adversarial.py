"""Training a VAE against a discriminator: two players with an optimiser each, one resumable run.

The VAE of a step is trained on reconstruction, KL, perceptual and adversarial terms; then the discriminator on the same
reconstructions. Which networks and losses these are is the objective's affair, reached through its plugin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from omnihuman_core.contracts import LossOutput
from omnihuman_train.config import OptimizerConfig, RunConfig
from omnihuman_train.distributed.mesh import World, processes
from omnihuman_train.distributed.outputs import rows
from omnihuman_train.ema import Ema
from omnihuman_train.loop import Batch, Trained, autocast, check_finite, clip, run_steps
from omnihuman_train.optim import OptimizerGroup, lr_factor


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """How the discriminator is trained and when the VAE begins to feel it.

    Attributes:
        start: Step from which the discriminator is trained.
        adversarial_start: Step from which the VAE is trained against it, not before ``start``: an opponent that has
            learnt nothing yet teaches nothing.
        optimizer: Optimiser and schedule; its warm-up counts from ``start``.
    """

    start: int
    adversarial_start: int
    optimizer: OptimizerConfig

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.adversarial_start:
            raise ValueError(
                "discriminator.start must lie in [0, discriminator.adversarial_start], "
                f"got {self.start} and {self.adversarial_start}"
            )


class AdversarialObjective(Protocol):
    """What the loop asks of an objective; ``omnihuman.objective.v1`` has it as ``vae``."""

    discriminator: nn.Module | None

    def to(self, device: torch.device) -> Any:
        """Move the networks of the terms."""
        ...

    def generator_loss(self, model: Any, batch: Batch, *, adversarial: bool = True) -> tuple[LossOutput, Tensor]:
        """Loss of the model, and the reconstruction ``(B, 3, T, H, W)``, detached."""
        ...

    def discriminator_loss(self, video: Tensor, reconstruction: Tensor) -> LossOutput:
        """Loss of the discriminator on what is real and what the model made of it."""
        ...


class Players:
    """Both optimisers, with what a checkpoint asks of an :class:`OptimizerGroup`.

    Args:
        model: The VAE.
        config: Its optimiser.
        discriminator: The opponent, if there is one.
        opponent: The opponent's optimiser.
    """

    def __init__(
        self, model: nn.Module, config: OptimizerConfig, discriminator: nn.Module | None, opponent: OptimizerConfig
    ) -> None:
        self.config = config
        self.model = OptimizerGroup(model, config)
        self.discriminator = None if discriminator is None else OptimizerGroup(discriminator, opponent)

    @property
    def saved(self) -> OptimizerGroup:
        """What is written into a checkpoint: it reads ``config`` and ``optimizers`` alone."""
        return cast(OptimizerGroup, self)

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Torch optimisers of both players, the VAE's first."""
        return self.model.optimizers + ([] if self.discriminator is None else self.discriminator.optimizers)


def fit_adversarial(
    model: nn.Module,
    objective: AdversarialObjective,
    batches: Callable[[int], Batch],
    config: RunConfig,
    game: DiscriminatorConfig,
    out: Path,
    *,
    resolved: str,
    title: str,
) -> Ema:
    """Train ``model`` against the objective's discriminator and leave the model's average in the returned ``Ema``.

    A checkpoint holds both players (``model.*`` and ``discriminator.*``, spectral-norm vectors included) and both
    optimisers, so that a resumed run is bit for bit one that never stopped. Without a discriminator this is plain
    training with the objective's other terms.

    Args:
        model: The VAE, trained in place.
        objective: Its objective.
        batches: ``batches(step)`` is the batch of a step, with ``video``; called one step ahead in a thread.
        config: Length, batch, precision and optimiser of the VAE.
        game: Optimiser and start of the discriminator.
        out: Folder of the run: ``checkpoints/`` and ``metrics.jsonl``. A run found there is resumed.
        resolved: The whole configuration as TOML, stored with each checkpoint.
        title: Shown beside the progress bar.

    Raises:
        FloatingPointError: a loss is not finite.
        ValueError: several processes, or a batch in parts; this loop has neither.
    """
    if processes() > 1 or config.accumulate != 1:
        raise ValueError(
            "the adversarial loop trains in one process and one part: start it without torchrun and set "
            f"run.accumulate to 1, got {processes()} processes and {config.accumulate} parts"
        )
    device = torch.device(config.device)
    objective.to(device)
    pair = nn.ModuleDict({"model": model})
    if objective.discriminator is not None:
        pair["discriminator"] = objective.discriminator
    pair.to(device).train()
    ema = Ema(model, config.ema_decay)
    players = Players(model, config.optimizer, objective.discriminator, game.optimizer)

    def load(step: int) -> list[Batch]:
        return [batches(step)]

    def play(step: int, parts: list[Batch]) -> tuple[LossOutput, int]:
        output = adversarial_step(model, objective, parts[0], players, config, game, step)
        ema.update(model, step)
        return output, rows(parts[0])

    trained = Trained(pair, ema, players.saved)
    run_steps(play, load, trained, config, World(device=device), out, resolved=resolved, title=title)
    return ema


def adversarial_step(
    model: nn.Module,
    objective: AdversarialObjective,
    batch: Batch,
    players: Players,
    config: RunConfig,
    game: DiscriminatorConfig,
    step: int,
) -> LossOutput:
    """One update of the VAE and, from ``game.start`` on, one of the discriminator on the same reconstructions."""
    with autocast(config, torch.device(config.device)):
        output, made = objective.generator_loss(model, batch, adversarial=step >= game.adversarial_start)
    norm = _update(model, output.loss, players.model, lr_factor(config.optimizer, step, config.steps), step)
    metrics = {**output.metrics, "grad_norm": norm}
    if objective.discriminator is not None and players.discriminator is not None and step >= game.start:
        with autocast(config, torch.device(config.device)):
            judged = objective.discriminator_loss(batch["video"], made)
        factor = lr_factor(game.optimizer, step - game.start, config.steps - game.start)
        norm = _update(objective.discriminator, judged.loss, players.discriminator, factor, step)
        metrics = {**metrics, **judged.metrics, "grad_norm/discriminator": norm}
    return LossOutput(loss=output.loss.detach(), metrics=metrics)


def _update(module: nn.Module, loss: Tensor, optimizer: OptimizerGroup, factor: float, step: int) -> Tensor:
    check_finite(loss, step)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = clip(module, optimizer.config.grad_clip)
    optimizer.step(factor)
    return norm
