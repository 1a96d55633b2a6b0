"""The parts of a whole run, in order: render, VAE, encode, decoder, backbone, export. Each resumes where it stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omnihuman_core.checkpoint import load_safetensors, save_safetensors
from omnihuman_core.config import to_toml
from omnihuman_core.ops import choose_ops
from omnihuman_core.plugins import plugin
from omnihuman_train.config import ClipsConfig, RunConfig, TrainConfig
from omnihuman_train.data.batches import FlowBatches, Shared, VideoBatches
from omnihuman_train.data.cached import bucket_folders
from omnihuman_train.data.characters import FRAME_RATE
from omnihuman_train.data.clips import render_clips
from omnihuman_train.data.latents import encode_clips
from omnihuman_train.distributed.fsdp import first_builds
from omnihuman_train.distributed.mesh import World, join
from omnihuman_train.export import export
from omnihuman_train.latent_statistics import latent_statistics, rendered_clips
from omnihuman_train.model import OmniModel, build
from omnihuman_train.objective import FlowObjective
from omnihuman_train.progress import CountingBar
from omnihuman_train.trainer import fit

# Beside the latents: which VAE made them.
ENCODED_BY = "vae.sha256"


def render(clips: ClipsConfig, folder: Path) -> None:
    """Render the synthetic clips of a run into ``folder``."""
    with counted("render clips", sum(clips.clips)) as advance:
        render_clips(clips, folder, progress=advance)


def vae_objective(config: TrainConfig, *, latent_noise: float = 0.0) -> Any:
    """The VAE's objective with the distance that the recipe names."""
    objective_class = plugin("objective", "vae")
    terms = objective_class.config_class(reconstruction=config.vae_reconstruction, latent_noise=latent_noise)
    return objective_class(terms)


def train_vae(config: TrainConfig, out: Path) -> None:
    """Train the VAE on windows of the clips and measure the constants that normalise its latents."""
    world = join(config.vae.parallel, config.vae.device)
    torch.manual_seed(config.vae.seed)
    vae = build("video_vae", "causal", config.preset)
    batches = VideoBatches(out / "clips", config.vae, frames=config.vae_frames, mouth_weight=config.vae_mouth_weight)
    weights = _train("vae", vae, vae_objective(config), batches, config.vae, config, out, world)
    if world.main:
        trained = build("video_vae", "causal", config.preset).eval()
        trained.load_state_dict(weights)
        # Where it was trained: the other processes wait for it.
        trained.to(world.device)
        # In fp32 whatever the run's precision: latents of runs under way were normalised by such constants.
        trained.set_latent_statistics(*latent_statistics(trained, rendered_clips(out / "clips")))
        weights = {name: value.cpu() for name, value in trained.state_dict().items()}
    _save(weights, "vae", out, world)


def train_decoder(config: TrainConfig, out: Path) -> None:
    """Go on training the VAE's decoder alone: the latents stay, so this may run while the backbone trains."""
    world = join(config.decoder.parallel, config.decoder.device)
    vae = load_vae(config, out)
    vae.encoder.requires_grad_(False)
    batches = VideoBatches(
        out / "clips",
        config.decoder,
        frames=config.vae_frames,
        mouth_weight=config.decoder_mouth_weight,
        hand_weight=config.decoder_hand_weight,
    )
    objective = vae_objective(config, latent_noise=config.decoder_noise)
    weights = _train("decoder", vae, objective, batches, config.decoder, config, out, world)
    _save(weights, "decoder", out, world)


def encode(config: TrainConfig, out: Path) -> None:
    """Encode the clips into ``out/latents``."""
    vae, audio = load_vae(config, out), build("feature_extractor", "log_mel", config.preset)
    folders = bucket_folders(out / "clips")
    check_encoded_by(vae, out / "latents")
    with counted("encode clips", sum(config.clips.clips)) as advance:
        for folder in folders:
            encode_clips(folder, out / "latents" / folder.name, vae, audio, fps=FRAME_RATE, progress=advance)


def train_backbone(config: TrainConfig, out: Path) -> None:
    """Train the backbone with its condition encoders through the stages."""
    world = join(config.run.parallel, config.run.device)
    torch.manual_seed(config.run.seed)
    dtype = torch.bfloat16 if config.run.precision == "bf16" else torch.float32
    ops = choose_ops(device=config.run.device, dtype=dtype, training=True)
    with first_builds(world):
        model = OmniModel.from_preset(config.preset, probe=config.flow.mouth_probe_weight > 0, ops=ops)
    vae = load_vae(config, out)
    bucket_folders(out / "latents")
    check_encoded_by(vae, out / "latents")
    batches = FlowBatches(
        out / "latents",
        config.run,
        config.segment,
        config.stages,
        text_extractor=build("feature_extractor", "text_bytes", config.preset),
        pose_extractor=build("feature_extractor", "skeleton", config.preset),
        spatial_stride=vae.latent_spec.spatial_stride,
        prompts=config.prompts,
    )
    weights = _train("backbone", model, FlowObjective(config.flow), batches, config.run, config, out, world)
    _save(weights, "backbone", out, world)


def export_model(config: TrainConfig, out: Path) -> None:
    """Put the trained parts together in ``out/model``."""
    model = OmniModel.from_preset(config.preset, probe=config.flow.mouth_probe_weight > 0)
    load_trained(model, out, "backbone")
    export(config, model.eval(), load_vae(config, out, "decoder"), out / "model")


PARTS: dict[str, Callable[[TrainConfig, Path], None]] = {
    "render": lambda config, out: render(config.clips, out / "clips"),
    "vae": train_vae,
    "encode": encode,
    "decoder": train_decoder,
    "backbone": train_backbone,
    "export": export_model,
}


def _train(
    part: str,
    model: nn.Module,
    objective: Any,
    batches: Shared,
    run: RunConfig,
    config: TrainConfig,
    out: Path,
    world: World,
) -> dict[str, Tensor]:
    """Train ``model`` into ``out/part``; returns its averaged weights, whole, on the first process alone."""
    sources, resolved = shares(batches, world, run), to_toml(config)
    ema = fit(model, objective, sources, run, out / part, resolved=resolved, title=part, world=world)
    return ema.whole_state(model, keep=world.main)


def _save(weights: dict[str, Tensor], part: str, out: Path, world: World) -> None:
    """Write what a part has trained; all processes call this, and go on once the file is there."""
    if world.main:
        save_safetensors(weights, out / part / "final.safetensors", {})
    world.wait()


def shares(batches: Shared, world: World, config: RunConfig) -> list[Shared]:
    """The parts of each batch that this process computes, one after the other."""
    count = config.accumulate
    return [batches.part(world.data_rank * count + i, world.data_size * count) for i in range(count)]


def load_vae(config: TrainConfig, out: Path, part: str = "vae") -> Any:
    """The VAE that a part of a run, ``vae`` or ``decoder``, has trained, in ``eval`` mode."""
    vae = build("video_vae", "causal", config.preset)
    load_trained(vae, out, part)
    return vae.eval()


def load_trained(module: nn.Module, out: Path, part: str) -> None:
    """Take over the weights that a part of the run left.

    Raises:
        ValueError: the part is not finished, or its weights are of another architecture.
    """
    path = out / part / "final.safetensors"
    if not path.exists():
        raise ValueError(f"{path}: not trained yet; run the part {part!r} first")
    weights = load_safetensors(path)
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path}: of another architecture: {str(error).splitlines()[-1].strip()}") from error


def check_encoded_by(vae: Any, latents: Path) -> None:
    """Check that the latents that are there were made by this VAE; where there are none, note that it makes them.

    Raises:
        ValueError: another VAE made them, so that the backbone would learn latents that the exported VAE cannot decode.
    """
    weights = hashlib.sha256()
    # The parameters alone: the statistics are measured anew by each call of the part 'vae'.
    for name, value in sorted(vae.named_parameters()):
        weights.update(name.encode() + value.detach().contiguous().numpy().tobytes())
    note = latents / ENCODED_BY
    if note.exists() and note.read_text() != weights.hexdigest():
        raise ValueError(f"{latents}: encoded by another VAE than the run has now; delete it and encode again")
    if not any(latents.glob("*/*.safetensors")):
        latents.mkdir(parents=True, exist_ok=True)
        note.write_text(weights.hexdigest())


@contextmanager
def counted(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar, without an end where ``total`` is None; yields the function that advances it."""
    with CountingBar() as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)
