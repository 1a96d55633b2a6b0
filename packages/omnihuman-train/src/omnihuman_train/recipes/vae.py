"""Recipes of the video VAE alone: L1, KL, perceptual and adversarial terms on pictures and clips of mixed sizes.

Weights and schedule are our choice: the paper takes its VAE as given (section 3.1).
"""

from __future__ import annotations

from dataclasses import replace

from omnihuman_train.adversarial import DiscriminatorConfig
from omnihuman_train.config import ClipsConfig, OptimizerConfig, RunConfig
from omnihuman_train.vae_config import VAELossConfig, VAETrainConfig


def natural() -> VAETrainConfig:
    """The ``base`` preset on own clips, packed before and read while it trains; as :func:`base` in all else."""
    return replace(base(), name="vae-natural", clips=None, data="data/clips")


def base() -> VAETrainConfig:
    """The ``base`` preset, 4x8x8 with 16 channels, on drawn clips and a GPU."""
    return VAETrainConfig(
        name="vae-base",
        preset="base",
        clips=ClipsConfig(
            sizes=((256, 256), (320, 192), (192, 320)),
            clips=(2048, 1024, 1024),
            framings=(("face", "half"), ("whole", "whole", "half", "face"), ("half", "face")),
            num_frames=49,
            shard_size=32,
        ),
        frames=17,
        image_ratio=0.25,
        mouth_weight=1.0,
        loss=VAELossConfig(),
        run=RunConfig(
            steps=200_000,
            batch_size=4,
            device="cuda",
            ema_decay=0.9995,
            log_every=100,
            checkpoint_minutes=30.0,
            optimizer=OptimizerConfig(lr=1e-4, warmup_steps=1000, decay_fraction=0.2),
        ),
        discriminator=DiscriminatorConfig(
            start=20_000,
            adversarial_start=25_000,
            # No first moment: the other player moves the optimum, and memory of where it was makes both circle.
            optimizer=OptimizerConfig(lr=1e-4, betas=(0.0, 0.99), weight_decay=0.0, warmup_steps=1000),
        ),
    )


def small() -> VAETrainConfig:
    """Every term and both players on 32 x 32 pixels and a CPU in half a minute; the VAE is then of no use."""
    return VAETrainConfig(
        name="vae-small",
        preset="tiny",
        clips=ClipsConfig(
            sizes=((32, 32), (48, 32)),
            clips=(6, 4),
            framings=(("face", "half"), ("whole", "half")),
            num_frames=9,
            shard_size=8,
        ),
        frames=5,
        image_ratio=0.25,
        mouth_weight=3.0,
        loss=VAELossConfig(discriminator_width=8, discriminator_layers=2),
        run=RunConfig(
            steps=40,
            batch_size=2,
            precision="fp32",
            ema_decay=0.9,
            log_every=5,
            optimizer=OptimizerConfig(lr=2e-3, warmup_steps=5),
        ),
        discriminator=DiscriminatorConfig(
            start=5,
            adversarial_start=10,
            optimizer=OptimizerConfig(lr=1e-3, betas=(0.0, 0.99), weight_decay=0.0, warmup_steps=5),
        ),
    )
