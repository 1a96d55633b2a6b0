"""A run of one stage on real data: start from a model directory, train, leave a model directory for the next stage."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from omnihuman_core.config import to_toml
from omnihuman_core.contracts import LossOutput
from omnihuman_core.model_dir import load_component, read_index
from omnihuman_core.ops.attention_choice import choose_ops
from omnihuman_train.data.stream import FlowStream
from omnihuman_train.data_fit import check_frame_rate, check_latents, check_sizes
from omnihuman_train.devices import check_device
from omnihuman_train.distributed.activation_checkpoint import checkpoint_blocks
from omnihuman_train.distributed.compile import compile_blocks
from omnihuman_train.distributed.fsdp import first_builds
from omnihuman_train.distributed.mesh import World, join, leave
from omnihuman_train.export import export_stage
from omnihuman_train.extractors import check_encoders, check_vae, data_recipe, extractors, vae_directory
from omnihuman_train.flops import training_flops
from omnihuman_train.folders import make_folder
from omnihuman_train.held_out import held_out, shared_sources
from omnihuman_train.lora import add_lora, merged_state
from omnihuman_train.model import OmniModel
from omnihuman_train.objective import FlowObjective
from omnihuman_train.stage_config import PARTS, StageConfig, check_start
from omnihuman_train.trainer import fit
from omnihuman_train.watch import GUARD, watchers
from omnihuman_train.watch_guard import LossGuard, check_not_stopped
from omnihuman_train.watch_loss import ValidationLoss
from omnihuman_train.watch_validation import ValidationVideos, decoder
from omnihuman_train.watching import Watcher
from omnihuman_train.workload import workload

MODEL = "model"
# Between the seeds of stages: apart by more than seeds that people choose, and far apart in the low 32 bits of what
# `step_generator` makes of them, which are all that torch takes of a seed on a CPU.
_STAGE_SEEDS = 1 << 20


def run_stage(config: StageConfig, out: Path) -> None:
    """Train one stage into ``out`` and leave its result in ``out/model``; goes on where it stopped.

    Args:
        config: The stage.
        out: Folder of the run.

    Raises:
        ValueError: the order of stages is not the paper's, ``start``, VAE, data and sizes do not fit the configuration,
            or the guard stopped the run before.
        FloatingPointError: the loss is not finite or jumped; the samples are named in ``out/guard``.
    """
    check_device(config.run.device, "run.device")
    check_start(config)
    if config.watch.guard:
        check_not_stopped(out / GUARD)
    made = data_recipe(config)
    frozen, vae = extractors(config, made), vae_directory(config, made)
    world = join(config.run.parallel, config.run.device)
    # Before the weights are loaded, which takes long.
    sources = streams(config, world)
    check_frame_rate(config, sources[0].data.records)
    check_latents(config, sources[0].spec)
    check_sizes(config, sources[0].spec, sources[0].plan.sizes)
    check_encoders(config, made, sources[0].features())
    held = held_out(config, lambda other: streams(other, world), sources[0])
    if world.main:
        check_vae(config, made, vae)
    model = start_model(config, world, shapes=sources[0].shapes())
    if world.main:
        if config.compile:
            print(f"compile: the samples have {sources[0].shapes()} shapes, each compiles when it is first met")
        if shared := shared_sources(held, sources[0]):
            print(
                f"watch.validation_data: {len(shared)} recordings are trained on too, the first is {shared[0]}; the "
                "loss on them flatters, split by source"
            )
        make_folder(out)
        (out / "config.toml").write_text(to_toml(config))
    flow = FlowObjective(config.flow)
    objective = LastSamples(flow, config.run.accumulate)
    watching = _watchers(config, out, world, model, held or sources, objective, vae)
    validate = None
    if held:
        validate = ValidationLoss(
            flow,
            held,
            model=model,
            active=config.stage.active,
            every=config.watch.validation_every,
            batches=config.watch.validation_batches,
            world=world,
            precision=config.run.precision,
        )
    try:
        ema = fit(
            model,
            objective,
            sources,
            config.run,
            out,
            resolved=to_toml(config),
            title=config.stage.name,
            watchers=watching,
            world=world,
            validate=validate,
        )
    except FloatingPointError as error:
        for guard in (watcher for watcher in watching if isinstance(watcher, LossGuard)):
            guard.stopped(str(error))
        raise
    weights = ema.whole_state(model, keep=world.main)
    if world.main:
        if config.lora is not None:
            weights = merged_state(weights, config.lora)
        export_stage(config, weights, out / MODEL, vae=vae, extractors=frozen)
    world.wait()
    leave()


class LastSamples:
    """An objective that remembers the keys of the samples it was given last, for the guard.

    Args:
        objective: The objective.
        parts: Calls of one step.
    """

    def __init__(self, objective: Callable[[Any, Mapping[str, Any]], LossOutput], parts: int) -> None:
        self._objective = objective
        self._keys: deque[Sequence[str]] = deque(maxlen=parts)

    def __call__(self, model: Any, batch: Mapping[str, Any]) -> LossOutput:
        """The loss of a batch."""
        self._keys.append(batch["key"])
        return self._objective(model, batch)

    def keys(self) -> list[str]:
        """Keys of the last step."""
        return [key for part in self._keys for key in part]


def start_model(config: StageConfig, world: World, *, shapes: int = 1) -> OmniModel:
    """The model that the stage starts with: real on the first process, on ``meta`` on the others.

    Args:
        config: The stage.
        world: Processes of the run.
        shapes: Shapes of its samples, for compiled blocks.

    Raises:
        ValueError: ``start`` lacks a component, or holds another architecture than the configuration.
    """
    dtype = torch.bfloat16 if config.run.precision == "bf16" else torch.float32
    ops = choose_ops(config.model.ops, device=config.run.device, dtype=dtype, training=True)
    torch.manual_seed(config.run.seed)
    parts: dict[str, nn.Module] = {}
    for name in PARTS:
        kind, chosen = config.model.component(name)
        options: dict[str, Any] = {"ops": ops} if name == "backbone" else {}
        if config.start is not None and world.main:
            parts[name] = load_component(config.start, name, **options)
            _check_same(config, name, parts[name])
        else:
            with first_builds(world):
                parts[name] = chosen.build(kind, **options)
    probe = None
    if config.flow.mouth_probe_weight:
        # A probe is not part of a model directory: every stage trains one anew.
        with first_builds(world):
            audio: Any = parts["audio_encoder"]
            probe = nn.Linear(audio.config.hidden_dim, 1)
    model = OmniModel(**parts, mouth_probe=probe)
    if config.lora is not None:
        add_lora(model, config.lora)
    checkpoint_blocks(model.backbone, config.activation_checkpoint)
    if config.compile:
        compile_blocks(model.backbone, shapes=shapes)
    return model


def _check_same(config: StageConfig, name: str, module: Any) -> None:
    kind, chosen = config.model.component(name)
    wanted, found = chosen.resolve(kind), module.config
    plugin_name = read_index(config.start or "").components[name].plugin
    if plugin_name != chosen.plugin:
        raise ValueError(f"start: {config.start}/{name} is a {plugin_name!r}, model.{name} is a {chosen.plugin!r}")
    for field, value in vars(wanted).items():
        if getattr(found, field, None) != value:
            raise ValueError(
                f"start: {config.start}/{name} is of another architecture than model.{name}: {field} is "
                f"{getattr(found, field, None)!r}, not {value!r}"
            )


def streams(config: StageConfig, world: World) -> list[FlowStream]:
    """What this process computes in a step, part by part; each stage draws its own, from the seed and its number.

    Raises:
        ValueError: the data does not fit; see :class:`~omnihuman_train.data.stream.FlowStream`.
    """
    whole = FlowStream(
        Path(config.data),
        config.batches(),
        config.segment,
        (config.stage,),
        seed=config.run.seed + (len(config.stages) - 1) * _STAGE_SEEDS,
        pose_extractor=config.model.pose_extractor.build("feature_extractor"),
        # Lengths of texts would be shapes to compile.
        trim_texts=not config.compile,
        mouth_truth=config.flow.mouth_probe_weight > 0,
    )
    count = config.run.accumulate
    return [whole.part(world.data_rank * count + part, world.data_size * count) for part in range(count)]


def _watchers(
    config: StageConfig,
    out: Path,
    world: World,
    model: OmniModel,
    shown: Sequence[FlowStream],
    objective: LastSamples,
    vae_from: str,
) -> list[Watcher]:
    work = workload(config)
    found = watchers(
        config.watch,
        out,
        sample_flops=training_flops(work.flops(work.stages[-1])),
        keys=objective.keys,
        rank=world.rank,
        world_size=world.size,
        device=world.device,
    )
    if config.watch.validation_every and config.watch.validation_seeds:
        found.append(
            ValidationVideos(
                out / "validation",
                model=model,
                batch=lambda: shown[0].read(0),
                decode=decoder(vae_from, world.device, config.run.precision),
                every=config.watch.validation_every,
                seeds=config.watch.validation_seeds,
                steps=config.watch.validation_steps,
                sigma_shift=config.generation.sigma_shift,
                fps=config.generation.fps,
                world=world,
                precision=config.run.precision,
                ratios=config.stage.ratios,
            )
        )
    return found
