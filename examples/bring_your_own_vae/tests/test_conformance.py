"""All that a VAE plugin needs to test: the shipped kit, and its own mathematics."""

from __future__ import annotations

import pytest
import torch
from haar_vae import HaarVAE, HaarVAEConfig

from omnihuman_core.testing import VideoVAEConformance

CONFIG = HaarVAEConfig(temporal_stride=2, spatial_stride=4, mean_std=0.5, detail_std=0.125)


class TestHaarVAE(VideoVAEConformance):
    round_trip_tolerance = 1e-5
    stochastic = False

    @pytest.fixture(params=[CONFIG, HaarVAEConfig(temporal_stride=4, spatial_stride=2, mean_std=1.0, detail_std=0.5)])
    def vae(self, request):
        return HaarVAE(request.param)


def test_the_first_channels_are_block_means():
    video = torch.rand(1, 3, 5, 8, 12) * 2 - 1
    latents = HaarVAE(CONFIG).encode(video)
    means = torch.nn.functional.avg_pool3d(video[:, :, 1:], (2, 4, 4))
    torch.testing.assert_close(latents[:, :3, 1:] * 0.5, means)


def test_strides_are_powers_of_two():
    with pytest.raises(ValueError, match="spatial_stride must be a power of two, got 6"):
        HaarVAEConfig(temporal_stride=2, spatial_stride=6, mean_std=1.0, detail_std=1.0)
