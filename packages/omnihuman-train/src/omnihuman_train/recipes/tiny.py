"""The recipe of the shipped small model: synthetic talking characters, a CPU and a few hours."""

from __future__ import annotations

from omnihuman_core.model_dir import GenerationSettings
from omnihuman_train.config import ClipsConfig, FlowConfig, OptimizerConfig, RunConfig, SegmentConfig, TrainConfig
from omnihuman_train.stages import Ratios, Stage


def tiny() -> TrainConfig:
    """Three stages as in the paper (section 3.3); the last one has the paper's ratios.

    There is no pretrained text-to-video model to start from, so the first stage learns what words mean, on pictures
    and mostly without a reference, which would answer everything that the text says.
    """
    stages = (
        Stage(
            name="text",
            steps=1000,
            ratios=Ratios(text=0.9, audio=0.0, pose=0.0, reference=0.2),
            pictures=True,
            batch_size=64,
        ),
        Stage(name="text+audio", steps=800, ratios=Ratios(text=0.9, audio=0.8, pose=0.0, reference=0.75)),
        Stage(name="text+audio+pose", steps=3400, ratios=Ratios(text=0.9, audio=0.5, pose=0.25, reference=0.75)),
    )
    return TrainConfig(
        name="tiny",
        preset="tiny",
        clips=ClipsConfig(
            sizes=((64, 64), (80, 48), (48, 80)),
            clips=(2048, 1024, 1024),
            framings=(("face", "half"), ("whole", "whole", "half", "face"), ("half", "face")),
            num_frames=49,
        ),
        vae=RunConfig(
            steps=1250,
            batch_size=16,
            ema_decay=0.998,
            optimizer=OptimizerConfig(lr=1e-3, warmup_steps=100, decay_fraction=0.3),
        ),
        vae_frames=9,
        vae_reconstruction="charbonnier",
        vae_mouth_weight=3.0,
        decoder=RunConfig(
            steps=2400,
            batch_size=16,
            seed=1,
            ema_decay=0.998,
            optimizer=OptimizerConfig(lr=1e-3, warmup_steps=50, decay_fraction=0.4),
        ),
        decoder_mouth_weight=12.0,
        decoder_hand_weight=3.0,
        decoder_noise=0.25,
        flow=FlowConfig(mouth_weight=4.0, hand_weight=2.0, mouth_probe_weight=1.0),
        segment=SegmentConfig(latent_frames=9),
        run=RunConfig(
            steps=5200,
            batch_size=24,
            ema_decay=0.998,
            optimizer=OptimizerConfig(name="muon", lr=1e-3, muon_lr=2e-3, warmup_steps=100, decay_fraction=0.3),
        ),
        stages=stages,
        prompts=0.5,
        generation=GenerationSettings(
            segment_frames=33,
            area=64 * 64,
            max_aspect=5 / 3,
            size_multiple=16,
            num_steps=20,
            guidance_scale=4.5,
            guidance_schedule="constant",
            guidance_end_scale=4.5,
            sigma_shift=1.0,
            sampler="euler",
        ),
    )
