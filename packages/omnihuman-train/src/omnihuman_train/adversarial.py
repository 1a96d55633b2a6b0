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
from omnihuman_train.distributed.exchange import Batch, Note, Told, exchange
from omnihuman_train.distributed.mesh import World, join
from omnihuman_train.distributed.replicas import average_gradients, same_weights
from omnihuman_train.ema import Ema
from omnihuman_train.loop import Trained, autocast, check_finite, clip, run_steps
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
    world: World | None = None,
) -> Ema:
    """Train ``model`` against the objective's discriminator and leave the model's average in the returned ``Ema``.

    Several processes hold whole copies of both players and average their gradients. A checkpoint holds both players
    (``model.*`` and ``discriminator.*``, spectral-norm vectors included) and both optimisers, so that a resumed run is
    bit for bit one that never stopped. Without a discriminator this is plain training with the objective's other terms.

    Args:
        model: The VAE, trained in place.
        objective: Its objective.
        batches: ``batches(step)`` is what this process computes in a step, with ``video``; called one step ahead in a
            thread.
        config: Length, batch, precision and optimiser of the VAE.
        game: Optimiser and start of the discriminator.
        out: Folder of the run: ``checkpoints/`` and ``metrics.jsonl``. A run found there is resumed.
        resolved: The whole configuration as TOML, stored with each checkpoint.
        title: Shown beside the progress bar.
        world: Processes of the run, where they have been joined before.

    Raises:
        FloatingPointError: a loss or the norm of its gradient is not finite.
        ValueError: a batch in parts, or processes that share weights or samples; this loop has neither.
    """
    check_parallel(config)
    here = join(config.parallel, config.device) if world is None else world
    objective.to(here.device)
    pair = nn.ModuleDict({"model": model})
    if objective.discriminator is not None:
        pair["discriminator"] = objective.discriminator
    pair.to(here.device).train()
    same_weights(pair, here)
    ema = Ema(model, config.ema_decay)
    players = Players(model, config.optimizer, objective.discriminator, game.optimizer)

    def load(step: int) -> list[Batch]:
        return [batches(step)]

    def play(step: int, parts: list[Batch], note: Callable[[], Note]) -> tuple[LossOutput, Told]:
        done = adversarial_step(model, objective, parts[0], players, config, game, step, here, note)
        ema.update(model, step)
        return done

    trained = Trained(pair, ema, players.saved)
    run_steps(play, load, trained, config, here, out, resolved=resolved, title=title)
    return ema


def check_parallel(config: RunConfig) -> None:
    """Check that the adversarial loop can do what a run asks for.

    Raises:
        ValueError: a batch in parts, or processes that share weights or samples.
    """
    if config.accumulate != 1:
        raise ValueError(
            f"run.accumulate is {config.accumulate}, but two players take a batch whole; set it to 1, and take more "
            f"processes or a smaller run.batch_size"
        )
    for name in ("dp_shard", "sequence"):
        if (getattr(config.parallel, name) or 1) != 1:
            raise ValueError(
                f"run.parallel.{name} is {getattr(config.parallel, name)}, but each process trains whole copies of two "
                f"players on samples of its own; leave it out"
            )


def adversarial_step(
    model: nn.Module,
    objective: AdversarialObjective,
    batch: Batch,
    players: Players,
    config: RunConfig,
    game: DiscriminatorConfig,
    step: int,
    world: World,
    note: Callable[[], Note] = Note,
) -> tuple[LossOutput, Told]:
    """One update of the VAE and, from ``game.start`` on, one of the discriminator on the same reconstructions.

    Returns:
        Loss and metrics of the samples of all processes, and what these have told each other.
    """
    with autocast(config, world.device):
        output, made = objective.generator_loss(model, batch, adversarial=step >= game.adversarial_start)
    output.loss.backward()  # type: ignore[no-untyped-call]
    outputs, opponent = [[output]], objective.discriminator if step >= game.start else None
    if opponent is not None:
        with autocast(config, world.device):
            judged = objective.discriminator_loss(batch["video"], made)
        judged.loss.backward()  # type: ignore[no-untyped-call]
        outputs.append([judged])
    told = exchange(outputs, [batch], world, note)
    for whole in told.outputs:
        check_finite(whole.loss, step)
    # Both norms before either update: a step is done by both players or by none.
    norms = {"grad_norm": _clipped(model, config.optimizer, world)}
    check_finite(norms["grad_norm"], step, "norm of the gradient")
    metrics = dict(told.outputs[0].metrics)
    if opponent is not None and players.discriminator is not None:
        norms["grad_norm/discriminator"] = _clipped(opponent, game.optimizer, world)
        check_finite(norms["grad_norm/discriminator"], step, "norm of the discriminator's gradient")
        metrics |= told.outputs[1].metrics
        players.discriminator.step(lr_factor(game.optimizer, step - game.start, config.steps - game.start))
    players.model.step(lr_factor(config.optimizer, step, config.steps))
    return LossOutput(loss=told.outputs[0].loss, metrics={**metrics, **norms}), told


def _clipped(module: nn.Module, config: OptimizerConfig, world: World) -> Tensor:
    """Average the gradients over the processes and clip them; returns their norm before."""
    average_gradients(module, world)
    return clip(module, config.grad_clip)
