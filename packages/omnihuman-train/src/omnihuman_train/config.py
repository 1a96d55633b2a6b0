"""Configuration of a training run: frozen dataclasses, filled by a recipe (a Python function) and ``--set``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from omnihuman_core.model_dir import GenerationSettings
from omnihuman_train.stages import Stage, check_stages


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimiser and learning-rate schedule.

    Attributes:
        name: ``adamw``, or ``muon``: Muon for the matrices inside blocks and AdamW for the rest.
        lr: Peak learning rate of AdamW.
        muon_lr: Peak learning rate of Muon (used with ``muon`` only).
        betas: AdamW moments.
        weight_decay: Decoupled weight decay on matrices.
        warmup_steps: Linear warm-up.
        decay_fraction: Last part of the run over which the rate falls linearly to zero; 0 keeps it constant.
        grad_clip: Largest gradient norm (paper: 1.0).
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 5e-5
    muon_lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    warmup_steps: int = 500
    decay_fraction: float = 0.0
    grad_clip: float = 1.0

    def __post_init__(self) -> None:
        for name in ("lr", "muon_lr", "grad_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"optimizer.{name} must be positive, got {getattr(self, name)}")
        for name in ("weight_decay", "warmup_steps"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"optimizer.{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.decay_fraction <= 1:
            raise ValueError(f"optimizer.decay_fraction must lie in [0, 1], got {self.decay_fraction}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas must lie in [0, 1), got {self.betas}")


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the processes that ``torchrun`` starts share the work; their number is the product of the three sizes.

    Attributes:
        dp_shard: Processes that share one copy of weights, gradients and optimiser state (FSDP2), each with its own
            samples. None takes all that the other two leave.
        dp_replicate: Such copies (HSDP); for a cluster, its nodes.
        sequence: Processes that share the tokens of a sample.
        timeout_minutes: How long a process waits for the others before it gives up, and torchrun starts all again.
    """

    dp_shard: int | None = None
    dp_replicate: int = 1
    sequence: int = 1
    timeout_minutes: float = 15.0

    def __post_init__(self) -> None:
        for name in ("dp_shard", "dp_replicate", "sequence"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"parallel.{name} must be at least 1, got {value}")
        if not self.timeout_minutes > 0:
            raise ValueError(f"parallel.timeout_minutes must be positive, got {self.timeout_minutes}")

    def sizes(self, processes: int) -> tuple[int, int, int]:
        """``(dp_replicate, dp_shard, sequence)`` of a run of so many processes.

        Raises:
            ValueError: their product is another number.
        """
        others = self.dp_replicate * self.sequence
        shard = max(processes // others, 1) if self.dp_shard is None else self.dp_shard
        if others * shard != processes:
            raise ValueError(
                f"parallel: dp_replicate {self.dp_replicate} x dp_shard {shard} x sequence {self.sequence} are "
                f"{others * shard} processes, but there are {processes}; start them with "
                f"torchrun --nproc-per-node={others * shard}, or change the sizes"
            )
        return self.dp_replicate, shard, self.sequence


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long and on what a model is trained.

    Attributes:
        steps: Optimiser steps of the whole run.
        batch_size: Samples per step, over all processes.
        seed: Every random draw of step ``i`` is a function of ``(seed, i)``.
        device: Torch device.
        precision: ``bf16`` runs the model under autocast; weights stay fp32.
        ema_decay: Decay of the exponential moving average of the weights.
        log_every: Steps between rows of ``metrics.jsonl``.
        checkpoint_minutes: Minutes between checkpoints; the last step is always saved.
        optimizer: Optimiser and schedule.
        accumulate: Parts that a process computes its samples in, one after the other; the gradient is that of all.
        parallel: How several processes share the work.
    """

    steps: int
    batch_size: int
    seed: int = 0
    device: str = "cpu"
    precision: Literal["bf16", "fp32"] = "bf16"
    ema_decay: float = 0.999
    log_every: int = 20
    checkpoint_minutes: float = 4.0
    optimizer: OptimizerConfig = OptimizerConfig()
    accumulate: int = 1
    parallel: ParallelConfig = ParallelConfig()

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ValueError(f"run.accumulate must be at least 1, got {self.accumulate}")
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(f"run.steps and run.batch_size must be at least 1, got {self.steps}, {self.batch_size}")
        if self.log_every < 1:
            raise ValueError(f"run.log_every must be at least 1, got {self.log_every}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"run.ema_decay must lie in [0, 1), got {self.ema_decay}")
        if not self.checkpoint_minutes >= 0:
            raise ValueError(f"run.checkpoint_minutes must not be negative, got {self.checkpoint_minutes}")


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Flow-matching objective on latents (paper section 3.1, 3.3).

    Attributes:
        sigma_mean: Mean of the logit-normal draw of sigma.
        sigma_std: Its standard deviation.
        sigma_shift: Shift ``k`` of ``k s / (1 + (k - 1) s)``.
        mouth_weight: Loss weight of latent positions that show a mouth (1 = like the rest).
        hand_weight: Loss weight of latent positions that show a hand.
        mouth_probe_weight: Weight of a linear probe that reads the mouth opening off the audio states; it trains the
            audio encoder and is thrown away afterwards. 0 where the truth is unknown.
    """

    sigma_mean: float = 0.0
    sigma_std: float = 1.0
    sigma_shift: float = 1.0
    mouth_weight: float = 1.0
    hand_weight: float = 1.0
    mouth_probe_weight: float = 0.0

    def __post_init__(self) -> None:
        for name in ("sigma_std", "sigma_shift", "mouth_weight", "hand_weight"):
            if not getattr(self, name) > 0:
                raise ValueError(f"flow.{name} must be positive, got {getattr(self, name)}")
        if not self.mouth_probe_weight >= 0:
            raise ValueError(f"flow.mouth_probe_weight must not be negative, got {self.mouth_probe_weight}")


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """Which latent frames a training sample holds.

    Attributes:
        latent_frames: Latent frames of a segment, motion frames included.
        motion_latents: Clean latent frames in front of a continuing segment (paper: 5 pixel frames = 2 latent frames).
        continuing_ratio: Share of batches that continue a segment; the others start one.
    """

    latent_frames: int
    motion_latents: int = 2
    continuing_ratio: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.motion_latents < self.latent_frames:
            raise ValueError(
                f"segment.motion_latents must be in [0, segment.latent_frames = {self.latent_frames}), "
                f"got {self.motion_latents}"
            )
        if not 0 <= self.continuing_ratio <= 1:
            raise ValueError(f"segment.continuing_ratio must lie in [0, 1], got {self.continuing_ratio}")

    def check(self, latent_frames: Sequence[int]) -> None:
        """Check that clips of these many latent frames hold a segment.

        Raises:
            ValueError: a clip is too short; a continuing segment leaves out latent frame 0, so it needs one frame more.
        """
        need = self.latent_frames + (self.continuing_ratio > 0)
        if min(latent_frames) < need:
            raise ValueError(
                f"segment.latent_frames is {self.latent_frames}, which needs clips of at least {need} latent frames, "
                f"got {min(latent_frames)}; raise clips.num_frames or shorten the segment"
            )


@dataclass(frozen=True, kw_only=True)
class ClipsConfig:
    """Synthetic clips to render.

    Attributes:
        sizes: ``(height, width)`` buckets.
        clips: Clips per bucket.
        framings: Framings that suit each size, taken in turn (``face``, ``half``, ``whole``).
        num_frames: Pixel frames of a clip.
        shard_size: Clips per shard file.
        seed: First index of the training seeds.
    """

    sizes: tuple[tuple[int, int], ...]
    clips: tuple[int, ...]
    framings: tuple[tuple[str, ...], ...]
    num_frames: int
    shard_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("clips", "framings"):
            if len(getattr(self, name)) != len(self.sizes):
                raise ValueError(f"clips.{name} needs one entry per size, got {len(getattr(self, name))}")
        if not self.sizes or min(self.clips) < 1 or self.shard_size < 1 or self.num_frames < 1 or self.seed < 0:
            raise ValueError(
                "clips needs at least one size, one clip per size, one frame, shard_size of at least 1 and seed of at "
                f"least 0, got clips = {self.clips}, num_frames = {self.num_frames}, shard_size = {self.shard_size}, "
                f"seed = {self.seed}"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole run: data, VAE, backbone with its condition encoders, stages, export.

    Attributes:
        name: Name of the model.
        preset: Preset of every component (``tiny``); each plugin lists its own in ``presets``.
        clips: Synthetic clips.
        vae: Training of the VAE.
        vae_frames: Pixel frames of a VAE training window.
        vae_reconstruction: Distance between pixels, as the VAE's objective names it.
        vae_mouth_weight: Loss weight of mouth pixels.
        decoder: Further training of the VAE's decoder, for which the latents stay as they are.
        decoder_mouth_weight: Loss weight of mouth pixels there.
        decoder_hand_weight: Loss weight of hand pixels there.
        decoder_noise: Noise on the latents that the decoder learns to read, in deviations of the latents; the VAE's
            objective calls it ``latent_noise``.
        flow: Objective of the backbone.
        segment: Frames per sample.
        run: Training of the backbone; ``run.steps`` is the sum of the stages' steps.
        stages: Stages in order.
        generation: How the exported model is used.
        prompts: Share of captions that the backbone reads cut, reordered and reworded, as users write prompts.
    """

    name: str
    preset: str
    clips: ClipsConfig
    vae: RunConfig
    vae_frames: int
    vae_reconstruction: str
    vae_mouth_weight: float
    decoder: RunConfig
    decoder_mouth_weight: float
    decoder_hand_weight: float
    decoder_noise: float
    flow: FlowConfig
    segment: SegmentConfig
    run: RunConfig
    stages: tuple[Stage, ...]
    generation: GenerationSettings
    prompts: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.prompts <= 1:
            raise ValueError(f"prompts must lie in [0, 1], got {self.prompts}")
        check_stages(self.stages)
        total = sum(stage.steps for stage in self.stages)
        if total != self.run.steps:
            raise ValueError(f"run.steps is {self.run.steps}, but the stages add up to {total}; make them equal")


def check_trial(steps: int) -> None:
    """Check the steps of a trial.

    Raises:
        ValueError: ``steps`` is less than 1.
    """
    if steps < 1:
        raise ValueError(f"--trial must be at least 1, got {steps}")
