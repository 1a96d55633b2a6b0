"""What the processes of the tests do."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from omnihuman_core.checkpoint import save_safetensors
from omnihuman_train.config import FlowConfig, OptimizerConfig, ParallelConfig, RunConfig
from omnihuman_train.distributed.fsdp import first_builds, loss_function
from omnihuman_train.distributed.mesh import join
from omnihuman_train.distributed.shards import whole
from omnihuman_train.model import OmniModel
from omnihuman_train.objective import FlowObjective
from omnihuman_train.parts import shares
from omnihuman_train.stages import Ratios, Stage
from omnihuman_train.trainer import fit
from omnihuman_train.watching import StepTiming, Watcher
from tests.train.distributed.split import compare_split
from tests.train.models import flow_batches, narrow_mmdit, toy_model

__all__ = ["compare_split", "stage", "timeouts", "train", "vae", "vae_recipe", "wrap"]

STEPS = 20
# Pose joins late, and then few samples keep it: steps and processes without any are among them.
STAGES = (
    Stage(name="text+audio", steps=8, ratios=Ratios(text=0.9, audio=0.5, pose=0.0)),
    Stage(name="all", steps=STEPS - 8, ratios=Ratios(text=0.9, audio=0.5, pose=0.25)),
)


class Stop(Exception):
    """A run that ends before its time."""


class Signalled:
    """Sends a stop signal to its own process after a step."""

    def __init__(self, at: int | None) -> None:
        self._at = at

    def step(self, step: int, output: object, timing: StepTiming) -> None:
        if step == self._at:
            os.kill(os.getpid(), signal.SIGUSR1)

    def close(self) -> None:
        """Nothing is open."""


def settings(name: Any = "adamw", *, accumulate: int = 1, minutes: float = 60.0, **parallel: Any) -> RunConfig:
    """Twenty steps of eight samples."""
    return RunConfig(
        steps=STEPS,
        batch_size=8,
        precision="fp32",
        log_every=1,
        checkpoint_minutes=minutes,
        ema_decay=0.9,
        accumulate=accumulate,
        parallel=ParallelConfig(**parallel),
        optimizer=OptimizerConfig(name=name, lr=1e-3, muon_lr=1e-3, warmup_steps=2, decay_fraction=0.5),
    )


def model() -> OmniModel:
    """A narrow MMDiT whose blocks all compute something from the first step on."""
    made = toy_model(narrow_mmdit(), probe=True)
    torch.manual_seed(3)
    for parameter in made.parameters():
        # Zero at the start: what they multiply would have no gradient.
        if not parameter.is_meta and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return made


def train(
    out: str,
    latents: str,
    *,
    stop: int | None = None,
    disk: int | None = None,
    wide: bool = False,
    signalled: int | None = None,
    watchers: Sequence[Watcher] = (),
    **changes: Any,
) -> None:
    """Train in ``out``; whole weights and their average end up in ``model`` and ``ema.safetensors`` there.

    Args:
        out: Folder of the run.
        latents: Encoded clips.
        stop: Step before which the run ends.
        disk: Bytes that a file may have after the first checkpoints.
        wide: Another architecture.
        signalled: Step after which the last process gets SIGUSR1.
        watchers: Of the run.
        changes: Of :func:`settings`.
    """
    torch.set_num_threads(1)
    config, folder = settings(**changes), Path(out)
    world = join(config.parallel, config.device)
    with first_builds(world):
        trained = model()
        if wide:
            trained.mouth_probe = torch.nn.Linear(8, 3)

    def supply(source: Any) -> Any:
        def batch(step: int) -> Any:
            if step == stop:
                raise Stop
            if step == 4 and disk is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (disk, resource.RLIM_INFINITY))
            return source(step)

        return batch

    sources = shares(flow_batches(Path(latents), batch_size=8, stages=STAGES), world, config)
    objective = FlowObjective(FlowConfig(mouth_weight=2.0, mouth_probe_weight=0.1))
    ema = fit(
        trained,
        objective,
        [supply(source) for source in sources],
        config,
        folder,
        resolved='name = "toy"\n',
        title="toy",
        world=world,
        watchers=[*watchers, Signalled(signalled)] if world.rank == world.size - 1 else watchers,
    )
    # Every process may use the model after training, as validation does.
    example = next(iter(sources))(3)
    with torch.no_grad():
        after = loss_function(trained, objective)({**example, "pose_maps": None}).loss.item()
    assert torch.isfinite(torch.tensor(after))
    averages = ema.whole_state(trained, keep=world.main)
    weights = {name: whole(value) for name, value in trained.state_dict().items()}
    if world.main:
        save_safetensors(weights, folder / "model.safetensors")
        save_safetensors(averages, folder / "ema.safetensors")


def timeouts(minutes: float, **parallel: int) -> None:
    """Join, and check how long every group that training uses waits for its processes."""
    world = join(ParallelConfig(timeout_minutes=minutes, **parallel), "cpu")
    assert world.weights is not None
    groups = [*world.weights.get_all_groups(), world.sequence_group, world.saving]
    waits = [group._get_backend(torch.device("cpu")).options._timeout for group in groups if group is not None]
    assert len(waits) == 4
    assert set(waits) == {timedelta(minutes=minutes)}, waits


def stage(
    out: str, data: str, *, start: str | None = None, rank: int = 0, held: str | None = None, **parallel: int
) -> None:
    """Stage 1 on an encoded data set, or with ``start`` stage 2; with low-rank updates if ``rank`` is not 0.

    Validated on the encoded data set ``held``.
    """
    from omnihuman_train.lora import LoraSettings
    from omnihuman_train.recipes import stage1, stage2
    from omnihuman_train.stage_run import run_stage
    from tests.train.stage_toys import toy

    torch.set_num_threads(1)
    config = toy(stage2.small() if start else stage1.small(), Path(data), Path(start) if start else None)
    run = replace(config.run, parallel=ParallelConfig(**parallel))
    lora = LoraSettings(rank=rank) if rank else None
    watch = replace(config.watch, validation_data=held, validation_batches=2)
    run_stage(replace(config, run=run, lora=lora, watch=watch), Path(out))


def vae(out: str, clips: str, *, minutes: float = 60.0, stop: int | None = None, disk: int | None = None) -> None:
    """Six steps of a VAE against its discriminators on pictures and clips, in ``out``.

    Args:
        out: Folder of the run; whole weights and their average end up in ``model`` and ``ema.safetensors`` there.
        clips: Rendered clips.
        minutes: Between checkpoints.
        stop: Step before which the run ends.
        disk: Bytes that a file may have after the first checkpoints.
    """
    from omnihuman_train.adversarial import DiscriminatorConfig, fit_adversarial
    from omnihuman_train.data.batches import VideoBatches
    from omnihuman_train.distributed.mesh import rank
    from tests.train.distributed.players import players

    torch.set_num_threads(1)
    config = RunConfig(
        steps=6,
        batch_size=4,
        precision="fp32",
        log_every=1,
        checkpoint_minutes=minutes,
        ema_decay=0.9,
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=2),
    )
    game = DiscriminatorConfig(
        start=1, adversarial_start=2, optimizer=OptimizerConfig(lr=1e-3, betas=(0.0, 0.99), warmup_steps=0)
    )
    world, folder = join(config.parallel, config.device), Path(out)
    # Every process starts from other weights; those of the first one count.
    trained, objective = players(seed=rank())
    whole_batches = VideoBatches(Path(clips), config, frames=5, mouth_weight=1.0, image_ratio=0.5)
    (batches,) = shares(whole_batches, world, config)

    def supply(step: int) -> Any:
        if step == stop:
            raise Stop
        if step == 3 and disk is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (disk, resource.RLIM_INFINITY))
        return batches(step)

    ema = fit_adversarial(trained, objective, supply, config, game, folder, resolved="", title="toy", world=world)
    weights = {**trained.state_dict(), **{f"opponent.{k}": v for k, v in objective.discriminator.state_dict().items()}}
    # Who does not write checkpoints has trained the same weights.
    save_safetensors(weights, folder / (f"{'' if world.main else world.rank}model.safetensors"))
    if world.main:
        save_safetensors(ema.whole_state(trained), folder / "ema.safetensors")


def vae_recipe(out: str, *, parts: Sequence[str], data: str | None = None) -> None:
    """Two steps of the VAE's small recipe in ``out``, on drawn clips or on the packed ones in ``data``."""
    import torch.distributed as dist

    from omnihuman_train import vae_run
    from omnihuman_train.recipes.vae import small
    from omnihuman_train.vae_config import shortened

    measure = vae_run.latent_statistics

    def measured(*arguments: Any, **named: Any) -> Any:
        # The others would wait, or give up, as long as this takes.
        assert not dist.is_initialized()
        return measure(*arguments, **named)

    vae_run.latent_statistics = measured
    torch.set_num_threads(1)
    config = shortened(small(), 2)
    assert config.clips is not None
    clips = replace(config.clips, clips=(2, 1)) if data is None else None
    vae_run.run_vae(replace(config, clips=clips, data=data), Path(out), parts)


def wrap(out: str, world: int, preset: str) -> None:
    """Shard a preset of the backbone as rank 0 of a made-up ``world``, on meta; its numbers end up in ``out``."""
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from omnihuman_core.mmdit import MMDiT
    from omnihuman_train.distributed.fsdp import shard
    from omnihuman_train.distributed.shards import local
    from omnihuman_train.memory import weight_memory

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    with torch.device("meta"):
        made = MMDiT(MMDiT.presets[preset]())
    count = sum(parameter.numel() for parameter in made.parameters())
    planned = vars(weight_memory(made, OptimizerConfig(), shards=world))
    largest = sorted(sum(p.numel() for p in block.parameters()) for block in [*made.double_blocks, *made.single_blocks])
    shard(made, join(ParallelConfig(), "cpu"))
    sharded = [isinstance(p, DTensor) and p.placements[0].is_shard() for p in made.parameters()]
    held = sum(p.to_local().numel() for p in made.parameters() if isinstance(p, DTensor))
    held_bytes = sum(local(value).nbytes for value in (*made.parameters(), *made.buffers()))
    Path(out).write_text(
        json.dumps(
            {
                "count": count,
                "all": all(sharded),
                "held": held,
                "blocks": largest[-2:],
                "held_bytes": held_bytes,
                "planned": planned,
            }
        )
    )
