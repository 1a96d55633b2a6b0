"""A run that trains a VAE alone: pictures and clips of mixed sizes, reconstruction against a discriminator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from omnihuman_core.checkpoint import save_safetensors
from omnihuman_core.config import from_table, to_toml
from omnihuman_core.importing.components import GENERATION
from omnihuman_core.model_dir import save_model
from omnihuman_core.plugins import plugin
from omnihuman_train.__about__ import __version__
from omnihuman_train.adversarial import DiscriminatorConfig, check_parallel, fit_adversarial
from omnihuman_train.config import ClipsConfig, RunConfig
from omnihuman_train.data.batches import VideoBatches
from omnihuman_train.devices import check_device
from omnihuman_train.distributed.mesh import join, leave, processes, rank
from omnihuman_train.folders import make_folder
from omnihuman_train.model import build
from omnihuman_train.parts import latent_statistics, render, shares

PARTS = ("render", "vae")


@dataclass(frozen=True, kw_only=True)
class VAELossConfig:
    """Terms of the VAE's objective, as its plugin names them.

    Attributes:
        reconstruction: ``l1`` or ``charbonnier``.
        kl_weight: Weight of the mean KL divergence per latent entry, in nats.
        perceptual_weight: Weight of the perceptual term.
        perceptual_frames: Frames of a clip that it looks at; None takes all.
        perceptual_weights: Folder with torchvision's VGG16 weights as safetensors; None leaves the term out.
        adversarial_weight: Weight of the adversarial term; 0 trains no discriminator.
        discriminator_width: Channels of the first layer of the discriminators.
        discriminator_layers: Layers of theirs that halve the picture.
    """

    reconstruction: str = "l1"
    kl_weight: float = 1e-6
    perceptual_weight: float = 1.0
    perceptual_frames: int | None = 4
    perceptual_weights: str | None = None
    adversarial_weight: float = 0.05
    discriminator_width: int = 64
    discriminator_layers: int = 3


@dataclass(frozen=True, kw_only=True)
class VAETrainConfig:
    """A whole VAE run.

    Attributes:
        name: Name of the run.
        preset: Preset of the VAE.
        clips: Clips to render; their sizes are the buckets.
        frames: Pixel frames of a training window.
        image_ratio: Share of batches of single pictures.
        mouth_weight: Loss weight of mouth pixels, 1 where the truth is unknown.
        loss: Terms of the objective.
        run: Training of the VAE.
        discriminator: Training of the discriminator.
    """

    name: str
    preset: str
    clips: ClipsConfig
    frames: int
    image_ratio: float
    mouth_weight: float
    loss: VAELossConfig
    run: RunConfig
    discriminator: DiscriminatorConfig

    def __post_init__(self) -> None:
        if not 0 <= self.image_ratio <= 1:
            raise ValueError(f"image_ratio must lie in [0, 1], got {self.image_ratio}")
        if not self.mouth_weight > 0:
            raise ValueError(f"mouth_weight must be positive, got {self.mouth_weight}")


def build_objective(config: VAETrainConfig) -> Any:
    """The VAE's objective with its discriminator and, where the weights are there, its perceptual term."""
    objective_class = plugin("objective", "vae")
    return objective_class.build(from_table(objective_class.config_class, _set_fields(config.loss), path="loss"))


def _set_fields(loss: VAELossConfig) -> dict[str, Any]:
    # A table has no null: an absent key reads as None.
    return {name: value for name, value in vars(loss).items() if value is not None}


def check(config: VAETrainConfig) -> None:
    """Check the sizes against the VAE, before any work.

    Raises:
        ValueError: an unknown preset or term, or a size or length that the VAE does not take.
    """
    from_table(plugin("objective", "vae").config_class, _set_fields(config.loss), path="loss")
    spec = build("video_vae", "causal", config.preset).latent_spec
    for size in config.clips.sizes:
        spec.latent_size(*size)
    if config.frames != spec.fit_frames(config.frames):
        raise ValueError(
            f"frames is {config.frames}; the next length that the VAE takes is {spec.fit_frames(config.frames)}"
        )
    if config.frames > config.clips.num_frames:
        raise ValueError(f"frames is {config.frames}, longer than clips.num_frames, {config.clips.num_frames}")


def run_vae(config: VAETrainConfig, out: Path, parts: Sequence[str] = PARTS) -> None:
    """Render the clips into ``out/clips`` and train the VAE into ``out/vae``; resumes where it stopped.

    What the VAE came to is in ``out/model``, a model directory without a backbone: clips are encoded with it, and a
    stage names it as its ``vae``.

    Raises:
        ValueError: the configuration does not fit, or there are no clips.
    """
    check(config)
    if "vae" in parts:
        check_device(config.run.device, "run.device")
        check_parallel(config.run)
    check_processes(config.run, parts)
    make_folder(out)
    if rank() == 0:
        (out / "config.toml").write_text(to_toml(config))
    if "render" in parts:
        render(config.clips, out / "clips")
    if "vae" in parts:
        _train(config, out)
        leave()


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


def shortened(config: VAETrainConfig, steps: int) -> VAETrainConfig:
    """The same run cut to at most ``steps`` steps, with the discriminator from the first one on, for a trial.

    Raises:
        ValueError: ``steps`` is less than 1.
    """
    if steps < 1:
        raise ValueError(f"--trial must be at least 1, got {steps}")
    return replace(
        config,
        run=replace(config.run, steps=min(config.run.steps, steps)),
        discriminator=replace(config.discriminator, start=0, adversarial_start=0),
    )


def _train(config: VAETrainConfig, out: Path) -> None:
    world = join(config.run.parallel, config.run.device)
    torch.manual_seed(config.run.seed)
    vae, objective = build("video_vae", "causal", config.preset), build_objective(config)
    batches = VideoBatches(
        out / "clips",
        config.run,
        frames=config.frames,
        mouth_weight=config.mouth_weight,
        image_ratio=config.image_ratio,
    )
    (mine,) = shares(batches, world, config.run)
    resolved, game = to_toml(config), config.discriminator
    ema = fit_adversarial(
        vae, objective, mine, config.run, game, out / "vae", resolved=resolved, title="vae", world=world
    )
    if world.main:
        ema.copy_to(vae.eval().cpu())
        vae.set_latent_statistics(*latent_statistics(vae, out / "clips"))
        save_safetensors(dict(vae.state_dict()), out / "vae" / "final.safetensors", {})
        (out / "vae" / "config.toml").write_text(to_toml(vae.config))
        components = {"vae": ("causal", vae)}
        save_model(out / "model", name=config.name, version=__version__, generation=GENERATION, components=components)
    world.wait()
