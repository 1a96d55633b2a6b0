"""The conformance kit of the contract, on both families of architecture."""

from __future__ import annotations

import pytest

from omnihuman_core.testing.vae import VideoVAEConformance
from omnihuman_vae import CausalVideoVAE
from omnihuman_vae.tiling import TiledVideoVAE, TilingConfig
from tests.vae.conftest import NARROW, build


class TestPatchedVAE(VideoVAEConformance):
    @pytest.fixture
    def vae(self) -> CausalVideoVAE:
        return build(NARROW["tiny"])


class TestConvolutionalVAE(VideoVAEConformance):
    @pytest.fixture
    def vae(self) -> CausalVideoVAE:
        return build(NARROW["base"])


class TestTiledVAE(VideoVAEConformance):
    latent_size = (3, 5)
    # A tiled VAE is a way to run one, not a component that a model directory names.
    test_0_registrable = None

    @pytest.fixture
    def vae(self) -> TiledVideoVAE:
        return TiledVideoVAE(build(NARROW["tiny"]), TilingConfig(tile_size=16, overlap=8))
