"""All that a backbone plugin needs to test: the shipped kit."""

from __future__ import annotations

import pytest
from factorised_backbone import FactorisedBackbone, FactorisedBackboneConfig

from omnihuman_core.testing import BackboneConformance
from omnihuman_core.testing.numerics import randomize

CONFIG = FactorisedBackboneConfig(
    latent_channels=4,
    hidden_size=16,
    num_heads=2,
    num_blocks=2,
    text_dim=6,
    pooled_dim=5,
    audio_dim=7,
    pose_channels=3,
)


class TestFactorisedBackbone(BackboneConformance):
    @pytest.fixture
    def backbone(self):
        return randomize(FactorisedBackbone(CONFIG)).eval()


def test_width_must_fit_the_heads():
    with pytest.raises(ValueError, match="hidden_size must be a multiple of 2"):
        FactorisedBackboneConfig(**{**vars(CONFIG), "num_heads": 3})
