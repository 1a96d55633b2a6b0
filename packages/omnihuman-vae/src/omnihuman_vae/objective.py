"""Training objective of the VAE: reconstruction + KL + optional perceptual and adversarial terms (paper section 3.1).

The paper takes its VAE as given; the sum of terms is the one of Rombach et al., High-Resolution Image Synthesis with
Latent Diffusion Models, section 3.1 and appendix G.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from omnihuman_core.contracts.objective import LossOutput
from omnihuman_vae.discriminator import ImageAndVideoDiscriminator
from omnihuman_vae.model import CausalVideoVAE
from omnihuman_vae.perceptual import VGGDistance

Perceptual = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class VAEObjectiveConfig:
    """Weights of the terms.

    Attributes:
        reconstruction: ``l1`` is the absolute error; ``charbonnier`` is ``sqrt(error^2 + epsilon^2) - epsilon``,
            quadratic for errors below ``charbonnier_epsilon``.
        charbonnier_epsilon: In units of the pixel range [-1, 1].
        kl_weight: Weight of the mean KL divergence per latent entry, in nats.
        latent_noise: How far the latents are disturbed before they are decoded, so that the decoder learns to read
            what a diffusion model makes of them; see :meth:`VAEObjective.disturb`. 0 disturbs nothing.
        perceptual_weight: Weight of the perceptual term.
        perceptual_frames: Frames of each clip that the perceptual term looks at, drawn anew in each step; None takes
            all of them.
        perceptual_weights: Folder of the VGG weights that :meth:`VAEObjective.build` reads.
        adversarial_weight: Weight of the adversarial term.
        discriminator_width: Channels of the first layer of the discriminators that :meth:`VAEObjective.build` makes.
        discriminator_layers: Layers of theirs that halve the picture.
    """

    reconstruction: Literal["l1", "charbonnier"] = "l1"
    charbonnier_epsilon: float = 0.05
    kl_weight: float = 1e-5
    latent_noise: float = 0.0
    perceptual_weight: float = 0.0
    perceptual_frames: int | None = None
    perceptual_weights: str | None = None
    adversarial_weight: float = 0.0
    discriminator_width: int = 32
    discriminator_layers: int = 3

    def __post_init__(self) -> None:
        if self.reconstruction not in ("l1", "charbonnier"):
            raise ValueError(
                f"VAEObjectiveConfig.reconstruction must be 'l1' or 'charbonnier', got {self.reconstruction!r}"
            )
        if self.charbonnier_epsilon <= 0:
            raise ValueError(f"VAEObjectiveConfig.charbonnier_epsilon must be positive, got {self.charbonnier_epsilon}")
        for name in ("kl_weight", "latent_noise", "perceptual_weight", "adversarial_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"VAEObjectiveConfig.{name} must not be negative, got {getattr(self, name)}")
        for name in ("discriminator_width", "discriminator_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"VAEObjectiveConfig.{name} must be at least 1, got {getattr(self, name)}")
        if self.perceptual_frames is not None and self.perceptual_frames < 1:
            raise ValueError(f"VAEObjectiveConfig.perceptual_frames must be at least 1, got {self.perceptual_frames}")


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

    @classmethod
    def build(cls, config: VAEObjectiveConfig) -> VAEObjective:
        """The objective with the networks that its weights ask for.

        Without ``perceptual_weights`` the perceptual term is left out, and a warning says so: no weights are ever
        downloaded.

        Raises:
            ValueError: the VGG weights are missing in their folder, or are not those of a VGG.
        """
        perceptual = None
        if config.perceptual_weight > 0 and config.perceptual_weights is None:
            warnings.warn("no perceptual term: perceptual_weights names no folder of VGG weights", stacklevel=2)
            config = replace(config, perceptual_weight=0.0)
        elif config.perceptual_weight > 0 and config.perceptual_weights is not None:
            perceptual = VGGDistance.from_folder(config.perceptual_weights)
        discriminator = None
        if config.adversarial_weight > 0:
            discriminator = ImageAndVideoDiscriminator(
                width=config.discriminator_width, num_layers=config.discriminator_layers
            )
        return cls(config, perceptual=perceptual, discriminator=discriminator)

    def to(self, device: torch.device) -> VAEObjective:
        """Move the networks of the terms."""
        for part in (self.perceptual, self.discriminator):
            if isinstance(part, nn.Module):
                part.to(device)
        return self

    def __call__(
        self, model: CausalVideoVAE, batch: Mapping[str, Any], *, generator: Generator | None = None
    ) -> LossOutput:
        """Loss of the VAE, every term included; see :meth:`generator_loss`."""
        return self.generator_loss(model, batch, generator=generator)[0]

    def generator_loss(
        self,
        model: CausalVideoVAE,
        batch: Mapping[str, Any],
        *,
        adversarial: bool = True,
        generator: Generator | None = None,
    ) -> tuple[LossOutput, Tensor]:
        """Loss of the VAE, and what it made of the video, for :meth:`discriminator_loss`.

        Args:
            model: The VAE.
            batch: ``video`` ``(B, 3, T, H, W)`` in [-1, 1]; optionally ``weight`` ``(B, 1, T, H, W)``, not negative,
                which says how much each pixel's error counts against the others (a mouth more than a wall, say).
            adversarial: False leaves the adversarial term out, as before its start.
            generator: Source of the posterior's noise and of the frames drawn; the global one otherwise.

        Returns:
            The loss, with the metrics ``reconstruction``, ``kl``, ``psnr`` (dB, unweighted, of values in [-1, 1]) and
            those of the optional terms; and the reconstruction ``(B, 3, T, H, W)``, fp32, without a gradient.
        """
        video: Tensor = batch["video"]
        posterior = model.posterior(video)
        latents = self.disturb(posterior.sample(generator), model.latents_std, generator)
        reconstruction = model.reconstruct(latents).float()
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
            frames = self._frames(video.shape[2], generator)
            perceptual = self.perceptual(reconstruction[:, :, frames], video.float()[:, :, frames])
            loss = loss + self.config.perceptual_weight * perceptual
            metrics["perceptual"] = perceptual.detach()
        if self.discriminator is not None and adversarial:
            # Detached weights: this term must leave no gradient in the discriminator.
            frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
            judged = -_mean_of_maps(functional_call(self.discriminator, frozen, (reconstruction,)))
            loss = loss + self.config.adversarial_weight * judged
            metrics["adversarial"] = judged.detach()
        return LossOutput(loss=loss, metrics=metrics), reconstruction.detach()

    def disturb(self, latents: Tensor, deviation: Tensor, generator: Generator | None = None) -> Tensor:
        """Add noise of a size drawn for each clip, ``|N(0, latent_noise^2)|`` deviations of the latents.

        Zheng et al., Diffusion Transformers with Representation Autoencoders (arXiv 2510.11690), section 4.3. Half of
        the noise's variance stays the same through a clip, as it does in a video model's errors.

        Args:
            latents: Draws of the posterior, ``(B, C, t, h, w)``.
            deviation: Standard deviation of each latent channel, ``(C,)``.
            generator: Source of the noise; the global one otherwise.

        Returns:
            Latents of the same shape; the given ones where ``latent_noise`` is 0.
        """
        if not self.config.latent_noise:
            return latents
        device = latents.device if generator is None else generator.device
        count, channels, frames, height, width = latents.shape

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device).to(latents)

        size = self.config.latent_noise * normal(count, 1, 1, 1, 1).abs() * deviation.to(latents).view(-1, 1, 1, 1)
        noise = normal(count, channels, 1, height, width) + normal(count, channels, frames, height, width)
        return latents + size * math.sqrt(0.5) * noise

    def discriminator_loss(self, video: Tensor, reconstruction: Tensor) -> LossOutput:
        """Hinge loss of the discriminator; gradients reach the discriminator alone.

        Lim and Ye, Geometric GAN, equation 6.

        Args:
            video: What is real, ``(B, 3, T, H, W)`` in [-1, 1].
            reconstruction: What the VAE made of it, same shape.

        Returns:
            The loss, with the metrics ``discriminator``, ``logits/real`` and ``logits/made``.

        Raises:
            ValueError: the objective has no discriminator.
        """
        if self.discriminator is None:
            raise ValueError("discriminator_loss needs a VAEObjective that was given a discriminator")
        real = self.discriminator(video.float())
        made = self.discriminator(reconstruction.detach().float())
        margins = [torch.relu(1 - logits) for logits in real], [torch.relu(1 + logits) for logits in made]
        loss = 0.5 * (_mean_of_maps(margins[0]) + _mean_of_maps(margins[1]))
        metrics = {
            "discriminator": loss.detach(),
            "logits/real": _mean_of_maps(real).detach(),
            "logits/made": _mean_of_maps(made).detach(),
        }
        return LossOutput(loss=loss, metrics=metrics)

    def _penalty(self, error: Tensor) -> Tensor:
        if self.config.reconstruction == "l1":
            return error.abs()
        epsilon = self.config.charbonnier_epsilon
        return torch.sqrt(error.square() + epsilon**2) - epsilon

    def _frames(self, count: int, generator: Generator | None) -> Tensor:
        """Frames for the perceptual term: any of them, since a fixed choice would favour its place in a latent."""
        if self.config.perceptual_frames is None or self.config.perceptual_frames >= count:
            return torch.arange(count)
        device = torch.device("cpu") if generator is None else generator.device
        order = torch.randperm(count, generator=generator, device=device)
        return order[: self.config.perceptual_frames].cpu()

    @staticmethod
    def _weighted_mean(penalty: Tensor, weight: Tensor | None) -> Tensor:
        if weight is None:
            return penalty.mean()
        expected = (penalty.shape[0], 1, *penalty.shape[2:])
        if tuple(weight.shape) != expected:
            raise ValueError(f"batch['weight'] must be {expected}, one value per pixel, got {tuple(weight.shape)}")
        # Relative weights: the scale of the loss, and so the balance with the KL term, stays that of the plain mean.
        return (penalty * weight).mean() / weight.mean()


def _mean_of_maps(maps: Sequence[Tensor]) -> Tensor:
    return torch.stack([logits.float().mean() for logits in maps]).mean()
