"""The posterior of the VAE."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class DiagonalGaussian:
    """A normal distribution with independent entries.

    Attributes:
        mean: Means, any shape.
        logvar: Log-variances of the same shape.
    """

    mean: Tensor
    logvar: Tensor

    def sample(self, generator: Generator | None = None) -> Tensor:
        """One draw, differentiable with respect to mean and log-variance; shape of ``mean``."""
        # Drawn in fp32 on the generator's device, so that one seed gives one draw whatever the precision.
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device)
        noise = noise.to(device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Tensor:
        """KL divergence to the standard normal of every entry, in nats; shape of ``mean``.

        Kingma and Welling, Auto-Encoding Variational Bayes, appendix B.
        """
        mean, logvar = self.mean.float(), self.logvar.float()
        return 0.5 * (mean.square() + logvar.exp() - 1 - logvar)
