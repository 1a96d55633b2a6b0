"""Small VAEs whose every layer matters: layers that start at zero are given weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from omnihuman_vae import CausalVAEConfig, CausalVideoVAE, presets

# The shape of each preset, with few channels.
NARROW = {
    "tiny": replace(presets.tiny(), channels=(12, 16), latent_channels=6),
    "base": replace(
        presets.base(),
        channels=(6, 8, 8, 10),
        encoder_blocks=(1, 0, 1, 1),
        decoder_blocks=(1, 1, 0, 1),
        latent_channels=4,
    ),
}


def build(config: CausalVAEConfig, *, seed: int = 0) -> CausalVideoVAE:
    torch.manual_seed(seed)
    vae = CausalVideoVAE(config).eval()
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv3d) and not module.weight.any():
            torch.nn.init.normal_(module.weight, std=0.1)
    channels = torch.arange(config.latent_channels)
    vae.set_latent_statistics(0.1 * channels, 0.5 + 0.1 * channels)
    return vae


@pytest.fixture(params=NARROW)
def vae(request: pytest.FixtureRequest) -> CausalVideoVAE:
    return build(NARROW[request.param])


@pytest.fixture
def narrow() -> Callable[[str], CausalVideoVAE]:
    return lambda name: build(NARROW[name])


@pytest.fixture
def video() -> Callable[..., torch.Tensor]:
    def make(frames: int = 9, height: int = 16, width: int = 24, batch: int = 1, seed: int = 3) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(batch, 3, frames, height, width, generator=generator) * 2 - 1

    return make
