"""A whole run on drawn characters: its configuration checked before any work, then its parts in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from omnihuman_core.config import to_toml
from omnihuman_core.plugins import plugin
from omnihuman_train.config import TrainConfig, check_trial
from omnihuman_train.devices import check_device
from omnihuman_train.distributed.mesh import leave, processes, rank
from omnihuman_train.folders import make_folder
from omnihuman_train.model import build
from omnihuman_train.parts import PARTS


def check(config: TrainConfig) -> None:
    """Check what the configuration says against the components and the machine, before any work.

    Raises:
        ValueError: an unknown preset or device, or sizes and lengths that do not fit together.
    """
    for name in ("vae", "decoder", "run"):
        check_device(getattr(config, name).device, f"{name}.device")
    plugin("objective", "vae").config_class(reconstruction=config.vae_reconstruction)
    spec = build("video_vae", "causal", config.preset).latent_spec
    multiple = build("backbone", "mmdit", config.preset).spec.spatial_multiple
    for size in config.clips.sizes:
        if any(side % multiple for side in spec.latent_size(*size)):
            raise ValueError(f"clips.sizes: {size} must be multiples of {multiple * spec.spatial_stride} pixels")
    for name, frames in (("clips.num_frames", config.clips.num_frames), ("vae_frames", config.vae_frames)):
        if frames != spec.fit_frames(frames):
            raise ValueError(f"{name} is {frames}; the next length that the VAE takes is {spec.fit_frames(frames)}")
    if config.vae_frames > config.clips.num_frames:
        raise ValueError(f"vae_frames is {config.vae_frames}, longer than clips.num_frames, {config.clips.num_frames}")
    config.segment.check([spec.latent_frames(config.clips.num_frames)])
    motion_frames = config.generation.motion_frames
    motion = spec.motion_latent_frames(motion_frames) if motion_frames else 0
    if config.segment.motion_latents != motion:
        raise ValueError(
            f"segment.motion_latents is {config.segment.motion_latents}, but generation.motion_frames = "
            f"{motion_frames} are {motion} latent frames; make them agree"
        )


def check_processes(config: TrainConfig, parts: Sequence[str]) -> None:
    """Check that ``parts`` can be done by the processes that ``torchrun`` has started, or by the one there is.

    Raises:
        ValueError: sizes that do not multiply to the number of processes, a batch that does not divide, or several
            processes for a part that is the work of one.
    """
    count = processes()
    trained = {"vae": config.vae, "decoder": config.decoder, "backbone": config.run}
    for part in parts:
        if part in trained:
            settings = trained[part]
            replicate, shard, _ = settings.parallel.sizes(count)
            ways = replicate * shard * settings.accumulate
            sizes = [stage.batch_size for stage in config.stages if part == "backbone" and stage.batch_size]
            if odd := [size for size in (settings.batch_size, *sizes) if size % ways]:
                raise ValueError(
                    f"part {part!r}: batch_size {odd[0]} must be a multiple of data processes x accumulate = {ways}"
                )
        elif count > 1:
            raise ValueError(f"part {part!r} is the work of one process; run --parts {part} without torchrun")


def run(config: TrainConfig, out: Path, parts: Sequence[str]) -> None:
    """Run ``parts`` of the recipe in order; ``out/config.toml`` keeps the resolved configuration.

    Raises:
        ValueError: the configuration does not fit, or a part misses what an earlier one makes.
    """
    check(config)
    check_processes(config, parts)
    make_folder(out)
    if rank() == 0:
        (out / "config.toml").write_text(to_toml(config))
    for part in parts:
        PARTS[part](config, out)
    leave()


def shortened(config: TrainConfig, steps: int) -> TrainConfig:
    """The same run with every training part cut to at most ``steps`` steps a stage, for a trial.

    Raises:
        ValueError: ``steps`` is less than 1.
    """
    check_trial(steps)
    stages = tuple(replace(stage, steps=min(stage.steps, steps)) for stage in config.stages)
    return replace(
        config,
        stages=stages,
        run=replace(config.run, steps=sum(stage.steps for stage in stages)),
        vae=replace(config.vae, steps=min(config.vae.steps, steps)),
        decoder=replace(config.decoder, steps=min(config.decoder.steps, steps)),
    )
