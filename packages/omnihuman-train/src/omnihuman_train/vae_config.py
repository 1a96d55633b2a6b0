"""Configuration of a run that trains a VAE alone, and its check against the VAE and the clips."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omnihuman_core.config import from_table
from omnihuman_core.contracts import LatentSpec
from omnihuman_core.plugins import plugin
from omnihuman_train.adversarial import DiscriminatorConfig
from omnihuman_train.config import ClipsConfig, RunConfig, check_trial
from omnihuman_train.data.plan import BatchConfig
from omnihuman_train.data.stream import StreamConfig
from omnihuman_train.data.video_stream import open_clips
from omnihuman_train.model import build

PARTS = ("render", "vae")
_STREAM = StreamConfig(batch=BatchConfig())


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
        clips: Clips to render; their sizes are the buckets. None where there is ``data``.
        data: Packed clips, as ``omnihuman-train data pack`` writes them, read while the VAE trains; in the place of
            ``clips``.
        stream: How ``data`` is read; its batches have ``run.batch_size`` windows.
        frames: Pixel frames of a training window.
        image_ratio: Share of batches of single pictures.
        mouth_weight: Loss weight of mouth pixels, 1 where the truth is unknown.
        loss: Terms of the objective.
        run: Training of the VAE.
        discriminator: Training of the discriminator.
    """

    name: str
    preset: str
    clips: ClipsConfig | None
    data: str | None = None
    stream: StreamConfig = _STREAM
    frames: int
    image_ratio: float
    mouth_weight: float
    loss: VAELossConfig
    run: RunConfig
    discriminator: DiscriminatorConfig

    def __post_init__(self) -> None:
        if self.clips is None and self.data is None:
            raise ValueError("neither clips nor data is set; name packed clips with data, or say in clips what to draw")
        if self.clips is not None and self.data is not None:
            raise ValueError(
                f"clips and data are both set, data to {self.data}; to train on packed clips set clips=none, to train "
                f"on drawn ones data=none"
            )
        if self.data is None and self.stream != _STREAM:
            raise ValueError("stream says how data is read, but data is not set; leave it out, or name packed clips")
        if (self.stream.batch.token_budget, self.stream.batch.batch_size) != (None, None):
            raise ValueError(
                "stream.batch.token_budget and stream.batch.batch_size are for stages; set run.batch_size, the windows "
                "of a step"
            )
        if not 0 <= self.image_ratio <= 1:
            raise ValueError(f"image_ratio must lie in [0, 1], got {self.image_ratio}")
        if not self.mouth_weight > 0:
            raise ValueError(f"mouth_weight must be positive, got {self.mouth_weight}")

    @property
    def parts(self) -> tuple[str, ...]:
        """What there is to do, in order: packed clips are not rendered."""
        return PARTS if self.data is None else ("vae",)


def check(config: VAETrainConfig) -> None:
    """Check the sizes against the VAE, before any work.

    Raises:
        ValueError: an unknown preset or term, or a size or length that the VAE does not take.
    """
    from_table(plugin("objective", "vae").config_class, loss_terms(config.loss), path="loss")
    spec = build("video_vae", "causal", config.preset).latent_spec
    if config.frames != spec.fit_frames(config.frames):
        raise ValueError(
            f"frames is {config.frames}; the next length that the VAE takes is {spec.fit_frames(config.frames)}"
        )
    if config.clips is not None:
        for size in config.clips.sizes:
            spec.latent_size(*size)
        if config.frames > config.clips.num_frames:
            raise ValueError(f"frames is {config.frames}, longer than clips.num_frames, {config.clips.num_frames}")
    if config.data is not None:
        _check_data(config.data, config, spec)


def _check_data(data: str, config: VAETrainConfig, spec: LatentSpec) -> None:
    if not Path(data).is_dir():
        raise ValueError(f"data: {data} does not exist; make it with `omnihuman-train data pack`, or set data=DIR")
    for bucket in sorted({record.bucket for record in open_clips(Path(data), config.stream).records}):
        try:
            spec.latent_size(bucket.height, bucket.width)
        except ValueError as error:
            raise ValueError(f"data: {data}: the VAE takes no clips of {bucket} ({error}); pack other sizes") from error
        if config.frames > bucket.frames:
            raise ValueError(
                f"frames is {config.frames}, but {data} holds clips of {bucket.frames} frames; set frames to at most "
                f"that, or pack longer samples"
            )


def shortened(config: VAETrainConfig, steps: int) -> VAETrainConfig:
    """The same run cut to at most ``steps`` steps, with the discriminator from the first one on, for a trial.

    Raises:
        ValueError: ``steps`` is less than 1.
    """
    check_trial(steps)
    return replace(
        config,
        run=replace(config.run, steps=min(config.run.steps, steps)),
        discriminator=replace(config.discriminator, start=0, adversarial_start=0),
    )


def loss_terms(loss: VAELossConfig) -> dict[str, Any]:
    """The fields of ``loss`` that are set, as a table: it has no null, an absent key reads as None."""
    return {name: value for name, value in vars(loss).items() if value is not None}
