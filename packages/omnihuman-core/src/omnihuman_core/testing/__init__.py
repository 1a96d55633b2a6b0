"""Conformance kits: a plugin's test is an empty subclass with fixtures that build the plugin.

::

    class TestMyVAE(VideoVAEConformance):
        @pytest.fixture
        def vae(self):
            return MyVAE(my_config())

A test numbered ``n`` checks invariant ``n`` of the contract's docstring; ``test_0`` checks what every plugin owes its
registry. The kits use plain ``assert`` and need no test framework to be imported.
"""

from omnihuman_core.testing.backbone import BackboneConformance
from omnihuman_core.testing.encoder import ConditionEncoderConformance
from omnihuman_core.testing.extractor import (
    AudioExtractorConformance,
    FeatureExtractorConformance,
    PoseExtractorConformance,
)
from omnihuman_core.testing.ops import OpsConformance
from omnihuman_core.testing.vae import VideoVAEConformance

__all__ = [
    "AudioExtractorConformance",
    "BackboneConformance",
    "ConditionEncoderConformance",
    "FeatureExtractorConformance",
    "OpsConformance",
    "PoseExtractorConformance",
    "VideoVAEConformance",
]
