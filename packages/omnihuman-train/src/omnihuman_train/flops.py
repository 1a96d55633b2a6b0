"""Floating-point operations of an MMDiT in training, as closed formulas of its configuration.

A multiplication with its addition counts as two. Only matrix products are counted, which is what MFU is defined on
(PaLM, arXiv 2204.02311, appendix B); ``torch.utils.flop_counter`` agrees within a percent. The condition encoders are
left out: they see a clip once where the blocks see it sixty times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from omnihuman_core.mmdit import MMDiTConfig
from omnihuman_train.distributed.activation_checkpoint import CheckpointMode

# The backward of a fused attention kernel has five matrix products to the forward's two: it forms the scores again.
ATTENTION_BACKWARD = 2.5
LINEAR_BACKWARD = 2.0


@dataclass(frozen=True, kw_only=True)
class SampleTokens:
    """Tokens of one sample.

    Attributes:
        frame: Tokens of one frame, and of the reference picture.
        references: Reference pictures, 0 or 1.
        motion_frames: Frames that are given clean, in tokens.
        video_frames: Frames that are denoised, in tokens.
        text: Text tokens ``S``.
        audio_per_frame: Audio tokens ``A`` of a frame; 0 without audio.
    """

    frame: int
    references: int
    motion_frames: int
    video_frames: int
    text: int
    audio_per_frame: int

    @property
    def frames(self) -> int:
        """Frames that hear audio."""
        return self.motion_frames + self.video_frames

    @property
    def visual(self) -> int:
        """Reference, motion and video tokens ``L``."""
        return self.frame * (self.references + self.frames)

    @property
    def total(self) -> int:
        """Length of the joint sequence ``L + S``."""
        return self.visual + self.text


def sample_tokens(
    config: MMDiTConfig,
    *,
    latent_frames: int,
    height: int,
    width: int,
    motion_latents: int,
    text: int,
    audio_per_frame: int,
    reference: bool = True,
) -> SampleTokens:
    """Tokens of a segment.

    Args:
        config: The architecture, for its patch size.
        latent_frames: Latent frames of the segment, motion frames included.
        height: Latent rows ``h``.
        width: Latent columns ``w``.
        motion_latents: Latent frames that are given clean.
        text: Text tokens ``S``.
        audio_per_frame: Audio tokens ``A`` of a latent frame; 0 without audio.
        reference: Whether a reference picture of the same size comes along.

    Raises:
        ValueError: a size is no multiple of the patch.
    """
    sizes = {"latent_frames": latent_frames, "height": height, "width": width}
    for (name, size), patch in zip(sizes.items(), config.patch_size, strict=True):
        if size < patch or size % patch:
            raise ValueError(f"{name} of the latents must be a multiple of the patch, {patch}, got {size}")
    frames, rows, columns = (size // patch for size, patch in zip(sizes.values(), config.patch_size, strict=True))
    motion = motion_latents // config.patch_size[0]
    return SampleTokens(
        frame=rows * columns,
        references=int(reference),
        motion_frames=motion,
        video_frames=frames - motion,
        text=text if config.text_dim is not None else 0,
        audio_per_frame=audio_per_frame if config.audio_dim is not None else 0,
    )


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Operations of one forward by kind.

    Attributes:
        linear: Projections and MLPs of the blocks.
        attention: Joint attention of the blocks.
        audio_linear: Projections of the audio cross-attention.
        audio_attention: Its attention.
        rest: Embedders, refiner and the last layer.
        spared: What frozen weights spare the backward: their gradients, and those of inputs that nothing trained made.
    """

    linear: float
    attention: float
    audio_linear: float
    audio_attention: float
    rest: float
    spared: float = 0.0

    @property
    def matrices(self) -> float:
        """All but attention."""
        return self.linear + self.audio_linear + self.rest

    @property
    def scores(self) -> float:
        """Joint attention and audio attention."""
        return self.attention + self.audio_attention

    @property
    def total(self) -> float:
        """All of them."""
        return self.matrices + self.scores


def forward_flops(config: MMDiTConfig, tokens: SampleTokens) -> Flops:
    """Operations of one forward of one sample."""
    width, mlp, blocks = config.hidden_size, config.mlp_size, config.num_blocks
    clean = tokens.references + tokens.motion_frames > 0 and config.clean_modulation == "zero"
    conditions = 2 if clean else 1
    token = 4 * width**2 + 2 * width * mlp
    linear = tokens.total * token * blocks
    if config.modulation == "per_block":
        text_rows = 1 if tokens.text else 0
        linear += 6 * width**2 * (conditions + text_rows) * config.num_double_blocks
        linear += 3 * width**2 * conditions * config.num_single_blocks
    listening = tokens.frames * tokens.frame if tokens.audio_per_frame else 0
    audio_blocks, heard = len(config.audio_blocks), tokens.frames * tokens.audio_per_frame
    audio_linear = 2 * width**2 * listening + 2 * width * (config.audio_dim or 0) * heard
    return Flops(
        linear=2.0 * linear,
        attention=4.0 * tokens.total**2 * width * blocks,
        audio_linear=2.0 * audio_linear * audio_blocks,
        # A token attends the audio of its own frame alone.
        audio_attention=4.0 * listening * tokens.audio_per_frame * width * audio_blocks,
        rest=2.0 * _outside_blocks(config, tokens, conditions) + _refiner_scores(config, tokens),
    )


def _outside_blocks(config: MMDiTConfig, tokens: SampleTokens, conditions: int) -> float:
    width, volume = config.hidden_size, math.prod(config.patch_size)
    scalar = 256 * width + width**2
    products = config.latent_channels * volume * width * (tokens.visual + tokens.video_frames * tokens.frame)
    products += (config.pose_channels or 0) * volume * width * tokens.frames * tokens.frame
    products += 2 * scalar + 2 * width**2
    if config.embedded_guidance is not None:
        products += scalar
    if config.pooled_dim is not None:
        products += config.pooled_dim * width + width**2
    if config.modulation == "shared":
        products += 6 * width**2 * conditions
    if config.text_dim is not None:
        products += tokens.text * config.text_dim * width
        if config.text_refiner_depth:
            products += scalar + config.text_dim * width + width**2
            block = (4 * width**2 + 2 * width * config.mlp_size) * tokens.text + 2 * width**2
            products += block * config.text_refiner_depth
    return products


def _refiner_scores(config: MMDiTConfig, tokens: SampleTokens) -> float:
    return 4.0 * tokens.text**2 * config.hidden_size * config.text_refiner_depth


def training_flops(forward: Flops) -> float:
    """Model operations of one sample in one step: forward and backward, nothing computed twice but the scores."""
    return (1 + LINEAR_BACKWARD) * forward.matrices + (1 + ATTENTION_BACKWARD) * forward.scores - forward.spared


def executed_flops(forward: Flops, mode: CheckpointMode) -> float:
    """Operations that a step really executes for one sample.

    ``full`` checkpointing runs the blocks' forward again, ``selective`` all of it but attention, whose output is kept.
    """
    blocks = forward.linear + forward.audio_linear
    again = {"none": 0.0, "selective": blocks, "full": blocks + forward.scores}[mode]
    return training_flops(forward) + again


def step_over_forward(forward: Flops, mode: CheckpointMode) -> float:
    """Time of a step over that of its own forward, if every operation takes equally long."""
    return executed_flops(forward, mode) / forward.total


def mfu(model_flops: float, seconds: float, peak_flops: float) -> float:
    """Share of the device's nominal matrix rate that model operations take, recomputation not counted.

    Args:
        model_flops: :func:`training_flops` of all samples that one device processed.
        seconds: Time it took.
        peak_flops: Nominal dense rate of one device, flop/s.
    """
    return model_flops / seconds / peak_flops
