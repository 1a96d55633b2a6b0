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
from omnihuman_core.contracts.encoder import AudioFeatures, ConditionEncoder, FeatureExtractor, TextFeatures
from omnihuman_core.contracts.importer import CheckpointImporter, ImportedComponent
from omnihuman_core.contracts.latents import LatentSpec
from omnihuman_core.contracts.objective import LossOutput, Objective
from omnihuman_core.contracts.ops import Attention, AttentionSupport, Ops, Segments
from omnihuman_core.contracts.state_dict import StateDictAdapter
from omnihuman_core.contracts.vae import VideoVAE

__all__ = [
    "CONDITIONS",
    "Attention",
    "AttentionSupport",
    "AudioCondition",
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
    "ReferenceCondition",
    "Segments",
    "StateDictAdapter",
    "TextCondition",
    "TextFeatures",
    "VideoVAE",
]
