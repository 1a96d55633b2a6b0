"""A recipe of minutes on a laptop: the stages of ``tiny`` on small clips, too short for a model that is of use."""

from __future__ import annotations

from dataclasses import replace

from omnihuman_train.config import ClipsConfig, OptimizerConfig, SegmentConfig, TrainConfig
from omnihuman_train.recipes.tiny import tiny


def debug() -> TrainConfig:
    """A few steps per stage on 32 x 32 pixels; it shows that every part runs, and nothing more."""
    recipe = tiny()
    optimizer = OptimizerConfig(lr=1e-3, warmup_steps=5)
    stages = tuple(replace(stage, steps=10, batch_size=None) for stage in recipe.stages)
    return replace(
        recipe,
        name="debug",
        clips=ClipsConfig(
            sizes=((32, 32), (48, 32)),
            clips=(12, 4),
            framings=(("face", "half"), ("whole", "half")),
            num_frames=21,
            shard_size=8,
        ),
        vae=replace(recipe.vae, steps=30, batch_size=4, log_every=5, optimizer=optimizer),
        decoder=replace(recipe.decoder, steps=10, batch_size=4, log_every=5, optimizer=optimizer),
        segment=SegmentConfig(latent_frames=4),
        run=replace(
            recipe.run,
            steps=sum(stage.steps for stage in stages),
            batch_size=4,
            log_every=5,
            optimizer=replace(optimizer, name="muon"),
        ),
        stages=stages,
        generation=replace(recipe.generation, segment_frames=13, area=32 * 32, num_steps=4),
    )
