"""A run that trains a VAE alone: pictures and clips of mixed sizes, reconstruction against a discriminator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnihuman_core.checkpoint import save_safetensors
from omnihuman_core.config import from_table, to_toml
from omnihuman_core.importing.components import GENERATION
from omnihuman_core.model_dir import save_model
from omnihuman_core.plugins import plugin
from omnihuman_train.__about__ import __version__
from omnihuman_train.adversarial import check_parallel, fit_adversarial
from omnihuman_train.config import RunConfig
from omnihuman_train.data.batches import VideoBatches
from omnihuman_train.data.clips import from_bytes
from omnihuman_train.data.video_stream import VideoStream, drawn_clips, open_clips
from omnihuman_train.devices import check_device
from omnihuman_train.distributed.exchange import Batch
from omnihuman_train.distributed.mesh import World, join, leave, processes, rank
from omnihuman_train.folders import make_folder
from omnihuman_train.latent_statistics import latent_statistics, rendered_clips
from omnihuman_train.model import build
from omnihuman_train.parts import counted, render, shares
from omnihuman_train.vae_config import VAETrainConfig, check, loss_terms

# Packed clips that the latents are measured on; of drawn ones it is a third of this for every size.
_MEASURED = 96


def run_vae(config: VAETrainConfig, out: Path, parts: Sequence[str] | None = None) -> None:
    """Render the clips into ``out/clips``, unless there are packed ones, and train the VAE into ``out/vae``.

    What the VAE came to is in ``out/model``, a model directory without a backbone: clips are encoded with it, and a
    stage names it as its ``vae``. Resumes where it stopped. Of several processes the first one returns last, with the
    model; the group that they are in is closed before.

    Args:
        config: The run.
        out: Its folder.
        parts: Of ``config.parts``, which are run; None runs all.

    Raises:
        ValueError: the configuration does not fit, or there are no clips.
    """
    parts = config.parts if parts is None else parts
    if "render" in parts and config.data is not None:
        raise ValueError(f"part 'render' draws clips, but this run trains on packed ones, {config.data}; leave it out")
    check(config)
    if "vae" in parts:
        check_device(config.run.device, "run.device")
        check_parallel(config.run)
    check_processes(config.run, parts)
    make_folder(out)
    if rank() == 0:
        (out / "config.toml").write_text(to_toml(config))
    if "render" in parts and config.clips is not None:
        render(config.clips, out / "clips")
    if "vae" in parts:
        _train(config, out)


def check_processes(run: RunConfig, parts: Sequence[str]) -> None:
    """Check that ``parts`` can be done by the processes that ``torchrun`` has started, or by the one there is.

    Raises:
        ValueError: a batch that does not divide, or several processes for a part that is the work of one.
    """
    count = processes()
    if count > 1 and "render" in parts:
        raise ValueError("part 'render' is the work of one process; run --parts render without torchrun")
    if run.batch_size % count:
        raise ValueError(f"run.batch_size {run.batch_size} must be a multiple of the {count} processes")


def build_objective(config: VAETrainConfig) -> Any:
    """The VAE's objective with its discriminator and, where the weights are there, its perceptual term."""
    objective_class = plugin("objective", "vae")
    return objective_class.build(from_table(objective_class.config_class, loss_terms(config.loss), path="loss"))


def _train(config: VAETrainConfig, out: Path) -> None:
    world = join(config.run.parallel, config.run.device)
    torch.manual_seed(config.run.seed)
    vae, objective = build("video_vae", "causal", config.preset), build_objective(config)
    batches = _batches(config, out, world)
    resolved, game = to_toml(config), config.discriminator
    ema = fit_adversarial(
        vae, objective, batches, config.run, game, out / "vae", resolved=resolved, title="vae", world=world
    )
    # The rest is the work of one process and may take long: the others end and do not wait for it.
    leave()
    if world.main:
        ema.copy_to(vae.eval())
        _save(config, vae, out)


def _batches(config: VAETrainConfig, out: Path, world: World) -> Callable[[int], Batch]:
    """What this process computes in a step."""
    if config.data is None:
        batches = VideoBatches(
            out / "clips",
            config.run,
            frames=config.frames,
            mouth_weight=config.mouth_weight,
            image_ratio=config.image_ratio,
        )
        (mine,) = shares(batches, world, config.run)
        return mine
    stream = VideoStream(
        Path(config.data),
        replace(config.stream, batch=replace(config.stream.batch, batch_size=config.run.batch_size)),
        frames=config.frames,
        seed=config.run.seed,
        mouth_weight=config.mouth_weight,
        image_ratio=config.image_ratio,
        rank=world.data_rank,
        world=world.data_size,
    )

    def batch(step: int) -> Batch:
        found = stream(step)
        return {**found, "video": from_bytes(found["video"].contiguous())}

    return batch


def _save(config: VAETrainConfig, vae: Any, out: Path) -> None:
    """Measure the latents and write what came of the run; the weights first, without the constants."""
    path = out / "vae" / "final.safetensors"
    save_safetensors({name: value.detach().cpu() for name, value in vae.named_parameters()}, path, {})
    with counted("measure latents", None) as advance:
        vae.set_latent_statistics(
            *latent_statistics(vae, _measured(config, out, advance), precision=config.run.precision)
        )
    vae.cpu()
    save_safetensors(dict(vae.state_dict()), path, {})
    (out / "vae" / "config.toml").write_text(to_toml(vae.config))
    components = {"vae": ("causal", vae)}
    save_model(out / "model", name=config.name, version=__version__, generation=GENERATION, components=components)


def _measured(config: VAETrainConfig, out: Path, advance: Callable[[int], None]) -> Iterator[Tensor]:
    """Clips to measure the latents on, uint8 ``(3, T, H, W)``."""
    if config.data is None:
        clips = rendered_clips(out / "clips")
    else:
        clips = drawn_clips(open_clips(Path(config.data), config.stream), _MEASURED, config.run.seed)
    for clip in clips:
        yield clip
        advance(1)
