"""Configuration of one stage on real data: it starts from a model directory, and its result starts the next stage.

A :class:`~omnihuman_train.config.TrainConfig` is a whole run on drawn characters, VAE included. Here the VAE and the
frozen extractors did their work before, when the data set was encoded; what is left to say is which weights, which
data, and which stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omnihuman_core.config import from_table, read_toml, to_toml
from omnihuman_core.model_dir import GenerationSettings
from omnihuman_core.plugins import plugin
from omnihuman_train.config import FlowConfig, RunConfig, SegmentConfig, check_trial
from omnihuman_train.data.stream import StreamConfig
from omnihuman_train.distributed.activation_checkpoint import CheckpointMode
from omnihuman_train.lora import LoraSettings
from omnihuman_train.stages import Stage, check_stages
from omnihuman_train.watch import WatchConfig

# Beside a model's index: the stages that made it.
RECORD = "training.toml"
PARTS = ("backbone", "text_encoder", "audio_encoder", "pose_encoder")


@dataclass(frozen=True, kw_only=True)
class ComponentConfig:
    """A component: a plugin's preset, with some of its fields changed.

    Attributes:
        plugin: Name of the plugin.
        preset: One of its presets.
        changes: Fields of the preset that differ.
    """

    plugin: str
    preset: str
    changes: dict[str, Any] = field(default_factory=dict)

    def resolve(self, kind: str) -> Any:
        """The component's own configuration.

        Args:
            kind: Kind of plugin.

        Raises:
            ValueError: an unknown plugin, preset or field, or a value that does not fit.
        """
        made_by = plugin(kind, self.plugin)
        if self.preset not in made_by.presets:
            raise ValueError(
                f"preset {self.preset!r} of {self.plugin!r} does not exist; it has {sorted(made_by.presets)}"
            )
        preset = made_by.presets[self.preset]()
        typed = {name: getattr(preset, name) for name in vars(preset)} | self.changes
        try:
            changed = from_table(type(preset), {name: value for name, value in typed.items() if value is not None})
        except ValueError as error:
            raise ValueError(f"{self.plugin}: {error}") from None
        return changed

    def build(self, kind: str, **options: Any) -> Any:
        """An instance with fresh weights; ``options`` go to the plugin as they are."""
        return plugin(kind, self.plugin)(self.resolve(kind), **options)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What is trained: the backbone and the condition encoders that are saved with it.

    Attributes:
        backbone: An MMDiT.
        text_encoder: Trainable half of the text path.
        audio_encoder: Trainable half of the audio path.
        pose_encoder: The pose guider.
        pose_extractor: What draws the skeletons that it sees.
        ops: Ops bundle of the backbone, ``eager`` or ``triton``.
    """

    backbone: ComponentConfig
    text_encoder: ComponentConfig
    audio_encoder: ComponentConfig
    pose_encoder: ComponentConfig
    pose_extractor: ComponentConfig
    ops: str = "eager"

    def component(self, name: str) -> tuple[str, ComponentConfig]:
        """Kind of plugin and configuration of one of :data:`PARTS`."""
        chosen: ComponentConfig = getattr(self, name)
        return ("backbone" if name == "backbone" else "condition_encoder"), chosen


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A whole run of one stage.

    Attributes:
        name: Name of the model.
        start: Model directory to start from: what ``omnihuman-train init`` wrote, or the ``model`` of the stage
            before; None draws fresh weights, which fits the first stage alone.
        model: What is trained; ``start`` has to hold exactly this.
        vae: Model directory whose VAE made the latents, for validation videos and the exported model; None takes that
            of ``start``, or without a start the one that the data was encoded with.
        data: Encoded data set, as ``omnihuman-train data cache`` writes it.
        stream: How it is read; its batches have ``run.batch_size`` samples, unless ``stream.batch.token_budget`` says
            how many fit.
        stages: Every stage up to this one, in order; the last one is trained here.
        flow: Objective.
        segment: Frames per sample.
        run: Training; ``run.steps`` is the number of steps of the last stage, ``run.batch_size`` the samples of a step,
            or what the token budget of the stream comes to on the whole.
        lora: Train low-rank updates of the backbone beside the condition paths, in place of all weights; the exported
            model has them merged.
        activation_checkpoint: What the blocks recompute in the backward pass.
        compile: Whether the blocks are compiled.
        watch: What is recorded beside the loss.
        generation: How the exported model is used.
    """

    name: str
    start: str | None
    model: ModelConfig
    vae: str | None
    data: str
    stream: StreamConfig
    stages: tuple[Stage, ...]
    flow: FlowConfig
    segment: SegmentConfig
    run: RunConfig
    lora: LoraSettings | None = None
    activation_checkpoint: CheckpointMode = "none"
    compile: bool = False
    watch: WatchConfig = WatchConfig()
    generation: GenerationSettings

    def __post_init__(self) -> None:
        check_stages(self.stages)
        if self.run.steps != self.stage.steps:
            raise ValueError(
                f"run.steps is {self.run.steps}, but stage {self.stage.name!r} has {self.stage.steps}; make them "
                f"equal, or cut the run short with --trial"
            )
        if self.stream.batch.batch_size not in (None, self.run.batch_size):
            raise ValueError(
                f"stream.batch.batch_size is {self.stream.batch.batch_size}, but run.batch_size is "
                f"{self.run.batch_size}; set run.batch_size alone"
            )
        # Refused here and not where the data is opened.
        self.batches()
        name = self.stage.name
        if self.stage.pictures:
            raise ValueError(
                f"stages: pictures of {name!r} is for runs on drawn characters; to train on first frames alone leave "
                f"it out and set segment.latent_frames=1, segment.motion_latents=0, segment.continuing_ratio=0"
            )
        if self.stage.batch_size not in (None, self.run.batch_size):
            raise ValueError(
                f"stages: batch_size of {name!r} is {self.stage.batch_size}, but a run of one stage takes that of the "
                f"run, {self.run.batch_size}; leave it out, and set run.batch_size"
            )
        if self.lora is not None and self.start is None:
            raise ValueError("lora adapts a trained model, but start is not set; name its model directory")
        if self.start is None and len(self.stages) > 1:
            raise ValueError(
                f"stage {self.stage.name!r} has no start, but it follows {_names(self.stages[:-1])}: each stage starts "
                f"from the result of the one before (paper section 3.3); set start to its model directory"
            )

    @property
    def stage(self) -> Stage:
        """The stage that this run trains."""
        return self.stages[-1]

    def batches(self) -> StreamConfig:
        """``stream`` with the size of its batches."""
        batch = self.stream.batch
        if batch.token_budget is None:
            batch = replace(batch, batch_size=self.run.batch_size)
        return replace(self.stream, batch=batch)


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """What a model has been trained on.

    Attributes:
        stages: Its stages, in order.
    """

    stages: tuple[Stage, ...]


def write_record(directory: Path, stages: Sequence[Stage]) -> None:
    """Note beside a model which stages made it."""
    (directory / RECORD).write_text(to_toml(TrainingRecord(stages=tuple(stages))))


def check_start(config: StageConfig) -> None:
    """Check that the model to start from has gone through the stages before this one, and no others.

    A model without a record has gone through none: it comes from ``omnihuman-train init``.

    Raises:
        ValueError: the order would be another than the paper's, or ``start`` is no model directory.
    """
    if config.start is None:
        return
    if not Path(config.start).is_dir():
        before = config.stages[:-1]
        made_by = f"train {_names(before)} first" if before else "make it with `omnihuman-train init`"
        raise ValueError(f"start: {config.start} does not exist; {made_by}, or name it with --set start=DIR")
    path = Path(config.start) / RECORD
    done = from_table(TrainingRecord, read_toml(path)).stages if path.exists() else ()
    before = config.stages[:-1]
    if [stage.active for stage in done] != [stage.active for stage in before]:
        raise ValueError(
            f"start: {config.start} has gone through {_names(done)}, but stage {config.stage.name!r} follows "
            f"{_names(before)}; conditions join from weak to strong, text, then audio, then pose (paper section 3.3 "
            f"and table 1, IPA)"
        )


def shortened(config: StageConfig, steps: int) -> StageConfig:
    """The same run with at most ``steps`` steps, for a trial.

    Raises:
        ValueError: ``steps`` is less than 1.
    """
    check_trial(steps)
    stage = replace(config.stage, steps=min(config.stage.steps, steps))
    return replace(config, stages=(*config.stages[:-1], stage), run=replace(config.run, steps=stage.steps))


def _names(stages: Sequence[Stage]) -> str:
    return ", then ".join(f"{stage.name!r} ({', '.join(stage.active)})" for stage in stages) or "no stage"
