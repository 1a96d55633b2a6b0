"""Contracts between the packages: torch and the standard library only."""

from omnihuman_core.contracts.backbone import CONDITIONS, Backbone, BackboneSpec
from omnihuman_core.contracts.conditioning import (
    AudioCondition,
    Conditioning,
    MotionCondition,
    PoseCondition,
    ReferenceCondition,
    TextCondition,
)
from omnihuman_core.contracts.encoder import ConditionEncoder
from omnihuman_core.contracts.extractor import (
    NUM_KEYPOINTS,
    SAMPLE_RATE,
    AudioExtractor,
    AudioFeatures,
    FeatureExtractor,
    PoseExtractor,
    TextFeatures,
)
from omnihuman_core.contracts.importer import CheckpointImporter, ImportedComponent
from omnihuman_core.contracts.latents import LatentSpec
from omnihuman_core.contracts.objective import LossOutput, Objective
from omnihuman_core.contracts.ops import Attention, AttentionSupport, Ops, Segments
from omnihuman_core.contracts.state_dict import StateDictAdapter
from omnihuman_core.contracts.vae import VideoVAE

__all__ = [
    "CONDITIONS",
    "NUM_KEYPOINTS",
    "SAMPLE_RATE",
    "Attention",
    "AttentionSupport",
    "AudioCondition",
    "AudioExtractor",
    "AudioFeatures",
    "Backbone",
    "BackboneSpec",
    "CheckpointImporter",
    "ConditionEncoder",
    "Conditioning",
    "FeatureExtractor",
    "ImportedComponent",
    "LatentSpec",
    "LossOutput",
    "MotionCondition",
    "Objective",
    "Ops",
    "PoseCondition",
    "PoseExtractor",
    "ReferenceCondition",
    "Segments",
    "StateDictAdapter",
    "TextCondition",
    "TextFeatures",
    "VideoVAE",
]
