"""The parts of a whole run, in order: render, VAE, encode, backbone, export. Each part resumes where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omnihuman_core.checkpoint import load_safetensors, save_safetensors
from omnihuman_core.config import to_toml
from omnihuman_core.plugins import plugin
from rich.progress import Progress

from omnihuman_train.config import TrainConfig
from omnihuman_train.data.batches import FlowBatches, VideoBatches
from omnihuman_train.data.cached import Shards, shard_paths
from omnihuman_train.data.clips import from_bytes, render_clips
from omnihuman_train.data.latents import encode_clips
from omnihuman_train.export import export
from omnihuman_train.model import OmniModel, build
from omnihuman_train.objective import FlowObjective
from omnihuman_train.trainer import fit

FPS = 25.0


def render(config: TrainConfig, out: Path) -> None:
    """Render the synthetic clips into ``out/clips``."""
    with counted("render clips", sum(config.clips.clips)) as advance:
        render_clips(config.clips, out / "clips", progress=advance)


def train_vae(config: TrainConfig, out: Path) -> None:
    """Train the VAE on windows of the clips and measure the constants that normalise its latents."""
    torch.manual_seed(config.vae.seed)
    vae = build("video_vae", "causal", config.preset)
    objective_class = plugin("objective", "vae")
    objective = objective_class(objective_class.config_class(reconstruction=config.vae_reconstruction))
    batches = VideoBatches(
        out / "clips", config.vae, frames=config.vae_frames, mouth_weight=config.vae_mouth_weight
    )
    ema = fit(vae, objective, batches, config.vae, out / "vae", resolved=to_toml(config), title="vae")
    ema.copy_to(vae.eval())
    mean, std = latent_statistics(vae, out / "clips")
    vae.set_latent_statistics(mean, std)
    save_safetensors(dict(vae.state_dict()), out / "vae" / "final.safetensors", {})


@torch.no_grad()
def latent_statistics(vae: Any, clips: Path, *, count: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of each latent channel, ``(C,)`` each, over ``count`` clips of every size bucket."""
    values = []
    for folder in sorted(path for path in clips.iterdir() if path.is_dir()):
        video = Shards(shard_paths(folder)[:1], ("video",)).tensors["video"][:count]
        means = torch.cat([vae.posterior(from_bytes(clip[None])).mean for clip in video])  # (N, C, t, h, w)
        values.append(means.movedim(1, -1).flatten(0, -2))
    stacked = torch.cat(values).float()
    return stacked.mean(0), stacked.std(0)


def load_vae(config: TrainConfig, out: Path) -> Any:
    """The trained VAE of a run, in ``eval`` mode."""
    path = out / "vae" / "final.safetensors"
    if not path.exists():
        raise ValueError(f"{path}: the VAE is not trained yet; run the part 'vae' first")
    vae = build("video_vae", "causal", config.preset)
    vae.load_state_dict(load_safetensors(path))
    return vae.eval()


def encode(config: TrainConfig, out: Path) -> None:
    """Encode the clips into ``out/latents``."""
    vae, audio = load_vae(config, out), build("feature_extractor", "log_mel", config.preset)
    with counted("encode clips", sum(config.clips.clips)) as advance:
        for folder in sorted(path for path in (out / "clips").iterdir() if path.is_dir()):
            encode_clips(folder, out / "latents" / folder.name, vae, audio, fps=FPS, progress=advance)


def train_backbone(config: TrainConfig, out: Path) -> None:
    """Train the backbone with its condition encoders through the stages, then export the model directory."""
    torch.manual_seed(config.run.seed)
    model = OmniModel.from_preset(config.preset, probe=config.flow.mouth_probe_weight > 0)
    vae = load_vae(config, out)
    batches = FlowBatches(
        out / "latents",
        config.run,
        config.segment,
        config.stages,
        text_extractor=build("feature_extractor", "text_bytes", config.preset),
        pose_extractor=build("feature_extractor", "skeleton", config.preset),
        spatial_stride=vae.latent_spec.spatial_stride,
    )
    ema = fit(
        model, FlowObjective(config.flow), batches, config.run, out / "backbone", resolved=to_toml(config), title="backbone"
    )
    ema.copy_to(model.eval())
    export(config, model, vae, out / "model")


PARTS: dict[str, Callable[[TrainConfig, Path], None]] = {
    "render": render,
    "vae": train_vae,
    "encode": encode,
    "backbone": train_backbone,
}


def run(config: TrainConfig, out: Path, parts: list[str]) -> None:
    """Run ``parts`` of the recipe in order; ``out/config.toml`` keeps the resolved configuration."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.toml").write_text(to_toml(config))
    for part in parts:
        PARTS[part](config, out)


def shortened(config: TrainConfig, steps: int) -> TrainConfig:
    """The same run with every training part cut to at most ``steps`` steps a stage, for a trial."""
    stages = tuple(replace(stage, steps=min(stage.steps, steps)) for stage in config.stages)
    return replace(
        config,
        stages=stages,
        run=replace(config.run, steps=sum(stage.steps for stage in stages)),
        vae=replace(config.vae, steps=min(config.vae.steps, steps)),
    )


@contextmanager
def counted(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar; yields the function that advances it."""
    with Progress() as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)
