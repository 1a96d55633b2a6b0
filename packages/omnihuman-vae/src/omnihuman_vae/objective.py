"""Training objective of the VAE: reconstruction + KL + optional perceptual and adversarial terms (paper section 3.1).

The paper takes its VAE as given; the sum of terms is the one of Rombach et al., High-Resolution Image Synthesis with
Latent Diffusion Models, section 3.1 and appendix G.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from omnihuman_core.contracts.objective import LossOutput
from omnihuman_vae.model import CausalVideoVAE

Perceptual = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class VAEObjectiveConfig:
    """Weights of the terms.

    Attributes:
        reconstruction: ``l1`` is the absolute error; ``charbonnier`` is ``sqrt(error^2 + epsilon^2) - epsilon``,
            quadratic for errors below ``charbonnier_epsilon``.
        charbonnier_epsilon: In units of the pixel range [-1, 1].
        kl_weight: Weight of the mean KL divergence per latent entry, in nats.
        perceptual_weight: Weight of the perceptual term.
        adversarial_weight: Weight of the adversarial term.
    """

    reconstruction: Literal["l1", "charbonnier"] = "l1"
    charbonnier_epsilon: float = 0.05
    kl_weight: float = 1e-5
    perceptual_weight: float = 0.0
    adversarial_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.reconstruction not in ("l1", "charbonnier"):
            raise ValueError(
                f"VAEObjectiveConfig.reconstruction must be 'l1' or 'charbonnier', got {self.reconstruction!r}"
            )
        if self.charbonnier_epsilon <= 0:
            raise ValueError(f"VAEObjectiveConfig.charbonnier_epsilon must be positive, got {self.charbonnier_epsilon}")
        for name in ("kl_weight", "perceptual_weight", "adversarial_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"VAEObjectiveConfig.{name} must not be negative, got {getattr(self, name)}")


class VAEObjective:
    """Implements :class:`omnihuman_core.contracts.objective.Objective` for :class:`CausalVideoVAE`.

    Args:
        config: Weights of the terms.
        perceptual: Distance between two videos ``(B, 3, T, H, W)``, as a scalar; needed when its weight is positive.
        discriminator: Maps a video to a sequence of logit maps (real is high); needed when the adversarial weight
            is positive.

    Raises:
        ValueError: a term has a weight but nothing to compute it with, or the other way round.
    """

    config_class: ClassVar[type[VAEObjectiveConfig]] = VAEObjectiveConfig

    def __init__(
        self,
        config: VAEObjectiveConfig | None = None,
        *,
        perceptual: Perceptual | None = None,
        discriminator: nn.Module | None = None,
    ) -> None:
        self.config = VAEObjectiveConfig() if config is None else config
        for name, part in (("perceptual", perceptual), ("adversarial", discriminator)):
            if (getattr(self.config, f"{name}_weight") > 0) != (part is not None):
                raise ValueError(
                    f"VAEObjectiveConfig.{name}_weight must be positive exactly when the {name} term's network is given"
                )
        self.perceptual = perceptual
        self.discriminator = discriminator

    def __call__(
        self, model: CausalVideoVAE, batch: Mapping[str, Any], *, generator: Generator | None = None
    ) -> LossOutput:
        """Loss of the VAE.

        Args:
            model: The VAE.
            batch: ``video`` ``(B, 3, T, H, W)`` in [-1, 1]; optionally ``weight`` ``(B, 1, T, H, W)``, not negative,
                which says how much each pixel's error counts against the others (a mouth more than a wall, say).
            generator: Source of the posterior's noise; the global one otherwise.

        Returns:
            The loss, and the metrics ``reconstruction``, ``kl``, ``psnr`` (dB, unweighted, of values in [-1, 1]) and
            those of the optional terms.
        """
        video: Tensor = batch["video"]
        posterior = model.posterior(video)
        reconstruction = model.reconstruct(posterior.sample(generator)).float()
        error = reconstruction - video.float()
        reconstruction_loss = self._weighted_mean(self._penalty(error), batch.get("weight"))
        kl = posterior.kl().mean()
        loss = reconstruction_loss + self.config.kl_weight * kl
        metrics = {
            "reconstruction": reconstruction_loss.detach(),
            "kl": kl.detach(),
            "psnr": -10 * torch.log10((error.detach() / 2).square().mean()),
        }
        if self.perceptual is not None:
            perceptual = self.perceptual(reconstruction, video.float())
            loss = loss + self.config.perceptual_weight * perceptual
            metrics["perceptual"] = perceptual.detach()
        if self.discriminator is not None:
            # Detached weights: this term must leave no gradient in the discriminator.
            frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
            adversarial = -_mean_of_maps(functional_call(self.discriminator, frozen, (reconstruction,)))
            loss = loss + self.config.adversarial_weight * adversarial
            metrics["adversarial"] = adversarial.detach()
        return LossOutput(loss=loss, metrics=metrics)

    def discriminator_loss(
        self, model: CausalVideoVAE, batch: Mapping[str, Any], *, generator: Generator | None = None
    ) -> LossOutput:
        """Hinge loss of the discriminator on the same batch; gradients reach the discriminator alone.

        Lim and Ye, Geometric GAN, equation 6.

        Raises:
            ValueError: the objective has no discriminator.
        """
        if self.discriminator is None:
            raise ValueError("discriminator_loss needs a VAEObjective that was given a discriminator")
        video: Tensor = batch["video"]
        with torch.no_grad():
            reconstruction = model.reconstruct(model.posterior(video).sample(generator)).float()
        real = [torch.relu(1 - logits) for logits in self.discriminator(video.float())]
        fake = [torch.relu(1 + logits) for logits in self.discriminator(reconstruction)]
        loss = 0.5 * (_mean_of_maps(real) + _mean_of_maps(fake))
        return LossOutput(loss=loss, metrics={"discriminator": loss.detach()})

    def _penalty(self, error: Tensor) -> Tensor:
        if self.config.reconstruction == "l1":
            return error.abs()
        epsilon = self.config.charbonnier_epsilon
        return torch.sqrt(error.square() + epsilon**2) - epsilon

    @staticmethod
    def _weighted_mean(penalty: Tensor, weight: Tensor | None) -> Tensor:
        if weight is None:
            return penalty.mean()
        expected = (penalty.shape[0], 1, *penalty.shape[2:])
        if tuple(weight.shape) != expected:
            raise ValueError(f"batch['weight'] must be {expected}, one value per pixel, got {tuple(weight.shape)}")
        # Relative weights: the scale of the loss, and so the balance with the KL term, stays that of the plain mean.
        return (penalty * weight).mean() / weight.mean()


def _mean_of_maps(maps: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.stack([logits.float().mean() for logits in maps]).mean()
