"""Each planted fault makes exactly the kit test of its invariant fail."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from omnihuman_core.contracts.conditioning import Conditioning
from omnihuman_core.testing.backbone import BackboneConformance
from omnihuman_core.testing.fakes import FakeBackbone, FakeBackboneConfig

CONFIG = FakeBackboneConfig(latent_channels=3, spatial_multiple=2, temporal_multiple=2, pooled_dim=6)
NO_POSE = replace(CONFIG, conditions=("text", "audio", "reference", "motion"), pose_channels=None)


class TestFakeBackbone(BackboneConformance):
    @pytest.fixture
    def backbone(self) -> FakeBackbone:
        return FakeBackbone(CONFIG)


class TestUnconditionalBackbone(BackboneConformance):
    @pytest.fixture
    def backbone(self) -> FakeBackbone:
        return FakeBackbone(
            FakeBackboneConfig(latent_channels=3, conditions=(), text_dim=None, audio_dim=None, pose_channels=None)
        )


class ForgetsItsConfig(FakeBackbone):
    config_class = dict  # type: ignore[assignment]


class ChangesDtype(FakeBackbone):
    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        return super().forward(latents, sigma, conditioning).double()


class LeaksItsPatchSize(FakeBackbone):
    """Works on an even number of patches only, and does not say so."""

    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        if latents.shape[2] * latents.shape[3] * latents.shape[4] % 16:
            raise RuntimeError("shape '[...]' is invalid for input")
        return super().forward(latents, sigma, conditioning)


class TakesAnySize(FakeBackbone):
    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        if any(size % 2 for size in latents.shape[2:]):
            return latents
        return super().forward(latents, sigma, conditioning)


class NeedsText(FakeBackbone):
    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        if conditioning.parts() and conditioning.text is None:
            raise KeyError("text")
        return super().forward(latents, sigma, conditioning)


class MixesSamples(FakeBackbone):
    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        return super().forward(latents, sigma, conditioning) + 0.1 * latents.mean()


class VelocityOfMotionToo(FakeBackbone):
    """Gives the motion frames a velocity as well."""

    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        velocity = super().forward(latents, sigma, conditioning)
        if conditioning.motion is not None:
            velocity = torch.cat([conditioning.motion.latents, velocity], dim=2)
        return velocity


class OneSigmaForAll(FakeBackbone):
    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        if not conditioning.parts():
            sigma = sigma.mean().expand_as(sigma)
        return super().forward(latents, sigma, conditioning)


class IgnoresSigma(FakeBackbone):
    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        return super().forward(latents, torch.full_like(sigma, 0.5), conditioning)


class InfiniteAtZero(FakeBackbone):
    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        return super().forward(latents, sigma, conditioning) * (sigma / sigma).view(-1, 1, 1, 1, 1)


class SwallowsPose(FakeBackbone):
    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        return super().forward(latents, sigma, replace(conditioning, pose=None))


class IgnoresAudio(FakeBackbone):
    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        return super().forward(latents, sigma, replace(conditioning, audio=None))


class HearsPadding(FakeBackbone):
    """Takes the mean over all text tokens."""

    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        text = conditioning.text
        if text is not None:
            conditioning = replace(conditioning, text=replace(text, mask=torch.ones_like(text.mask)))
        return super().forward(latents, sigma, conditioning)


FAULTS = [
    (ForgetsItsConfig, CONFIG, "test_0_registrable"),
    (ChangesDtype, CONFIG, "test_1_velocity_shape"),
    (LeaksItsPatchSize, CONFIG, "test_2_sizes"),
    (TakesAnySize, CONFIG, "test_2_sizes"),
    (NeedsText, CONFIG, "test_3_absent_conditions"),
    (MixesSamples, CONFIG, "test_4_samples_are_independent"),
    (VelocityOfMotionToo, CONFIG, "test_5_motion_frames"),
    (OneSigmaForAll, CONFIG, "test_6_sigma_per_sample"),
    (IgnoresSigma, CONFIG, "test_6_sigma_per_sample"),
    (InfiniteAtZero, CONFIG, "test_6_sigma_per_sample"),
    (SwallowsPose, NO_POSE, "test_7_conditions"),
    (IgnoresAudio, CONFIG, "test_7_conditions"),
    (HearsPadding, CONFIG, "test_8_text_padding"),
]


@pytest.mark.parametrize(("fault", "config", "test"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS])
def test_planted_fault_is_found(fault, config, test, failing):
    assert failing(BackboneConformance(), backbone=fault(config)) == {test}


def test_the_fake_follows_the_exact_flow():
    """Euler steps with the closed-form velocity arrive where the Gaussian's flow map says."""
    backbone = FakeBackbone(replace(CONFIG, std=0.5)).double()
    kit = BackboneConformance()
    noise = kit.latents(backbone).double()
    conditioning = kit.conditioning(backbone, noise).to(torch.float64)
    x, sigmas = noise, torch.linspace(1, 0, 2001, dtype=torch.float64)
    with torch.no_grad():
        for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
            x = x + (then - now) * backbone(x, now.expand(2), conditioning)
        assert torch.allclose(x, backbone.solution(noise, conditioning), atol=5e-3)
