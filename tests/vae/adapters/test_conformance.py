"""The conformance kit of the contract, on every VAE that the adapters provide.

Some published models cannot keep a rule. Those tests are replaced by None with the reason; what can be said instead is
tested in the files beside this one.
"""

from __future__ import annotations

import pytest

from omnihuman_core.testing.vae import VideoVAEConformance
from omnihuman_vae.adapters import DiffusersVideoVAE, HunyuanVideoVAE, WanVAE
from tests.vae.adapters.conftest import native, other


class TestWan(VideoVAEConformance):
    @pytest.fixture
    def vae(self) -> WanVAE:
        return native("wan")


class TestHunyuanVideo(VideoVAEConformance):
    # Its group norms take their statistics over the whole clip: see test_causal_but_for_statistics.
    test_4_causality = None
    test_7_picture = None

    @pytest.fixture
    def vae(self) -> HunyuanVideoVAE:
        return native("hunyuan_video")


class TestHunyuanVideo15(VideoVAEConformance):
    # Its mask is built position by position in Python.
    latent_frames = 3
    latent_size = (1, 2)
    # Sums of other lengths when frames are added: rounding of the public implementation, not of ours.
    tolerance = 1e-4

    @pytest.fixture
    def vae(self) -> DiffusersVideoVAE:
        return other("hunyuan_video_1_5")


class TestWan22(VideoVAEConformance):
    @pytest.fixture
    def vae(self) -> DiffusersVideoVAE:
        return other("wan_2_2")


class TestLTX(VideoVAEConformance):
    # The published decoders look ahead in time.
    test_4_causality = None
    test_7_picture = None

    @pytest.fixture
    def vae(self) -> DiffusersVideoVAE:
        return other("ltx")


class TestCausalLTX(VideoVAEConformance):
    """The same architecture with a decoder that looks back only keeps every rule."""

    @pytest.fixture
    def vae(self) -> DiffusersVideoVAE:
        return other("ltx", decoder_causal=True)


class TestCogVideoX(VideoVAEConformance):
    # Its group norms see several latent frames at once.
    test_4_causality = None
    test_7_picture = None

    @pytest.fixture
    def vae(self) -> DiffusersVideoVAE:
        return other("cogvideox")


class TestMochi(VideoVAEConformance):
    @pytest.fixture
    def vae(self) -> DiffusersVideoVAE:
        return other("mochi")
