"""A narrow VAE whose posterior noise belongs to the sample, and its objective."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from omnihuman_train.recipes.vae import small
from omnihuman_train.vae_run import build_objective
from omnihuman_vae import CausalVideoVAE, presets
from omnihuman_vae.distribution import DiagonalGaussian


@dataclass(frozen=True)
class OwnNoise(DiagonalGaussian):
    """Draws with given noise."""

    noise: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.mean + torch.exp(0.5 * self.logvar) * self.noise


class OwnNoiseVAE(CausalVideoVAE):
    """The VAE with noise that each sample's pixels decide: the same in whatever process it is."""

    def posterior(self, video: Tensor) -> DiagonalGaussian:
        found = super().posterior(video)
        seeds = [zlib.crc32(sample.contiguous().numpy().tobytes()) for sample in video]
        noise = [torch.randn(found.mean.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return OwnNoise(found.mean, found.logvar, torch.stack(noise))


def players(seed: int = 0) -> tuple[Any, Any]:
    """VAE and objective with fresh weights."""
    torch.manual_seed(seed)
    config = small()
    config = replace(config, loss=replace(config.loss, perceptual_weight=0.0))
    vae = OwnNoiseVAE(replace(presets.tiny(), channels=(16, 24), decoder_blocks=(2, 1)))
    # Layers that start at zero would keep the ones before them from learning in the first step.
    for module in vae.modules():
        if isinstance(module, nn.Conv3d) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.05)
    return vae, build_objective(config)
