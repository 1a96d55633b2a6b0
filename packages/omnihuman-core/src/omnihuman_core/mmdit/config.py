"""Architecture of the multi-modal diffusion transformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TextGroups:
    """What stands behind each other in the text tokens of a model with several text encoders.

    The prompt's tokens come first, in the width ``text_dim``; whatever is left behind the words is a picture.

    Attributes:
        prompt_tokens: Tokens of the prompt.
        glyph_tokens: Tokens of the words that shall be written in the video.
        glyph_dim: Their width; the rest of ``text_dim`` is zeros.
        picture_dim: Width of a picture's tokens, likewise.
    """

    prompt_tokens: int
    glyph_tokens: int
    glyph_dim: int
    picture_dim: int

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "glyph_tokens", "glyph_dim", "picture_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"TextGroups.{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class MMDiTConfig:
    """Everything that fixes the weights and the mathematics of an MMDiT.

    Attributes:
        latent_channels: Channels ``C`` of the latents.
        patch_size: ``(frames, rows, columns)`` of latents behind one token.
        hidden_size: Width ``D``.
        num_heads: Heads ``N``; ``hidden_size / num_heads`` is ``K``.
        num_double_blocks: Blocks with separate weights for video and text.
        num_single_blocks: Blocks with shared weights, after the double ones.
        mlp_ratio: Width of the MLPs over ``hidden_size``.
        rope_dims: Split of ``K`` over time, rows and columns; each even.
        rope_theta: Base of the rotary frequencies.
        modulation: ``per_block`` gives each block its own projection of the condition vector (HunyuanVideo);
            ``shared`` has one projection for all blocks and a learned table in each.
        clean_modulation: What modulates the clean tokens (reference, motion): ``shared`` is the vector of the noisy
            ones; ``zero`` is the vector of noise level 0, without guidance (HunyuanVideo's token replacement).
        segment_embedding: Add a learned vector that tells reference, motion and video tokens apart.
        text_dim: Width of text tokens; None takes no text.
        text_refiner_depth: Blocks of the token refiner; 0 is a linear projection.
        text_groups: Kinds of text tokens where there are several; None is a prompt alone.
        pooled_dim: Width of the pooled text vector; None takes none.
        embedded_guidance: Guidance scale given to the embedding of a guidance-distilled model; None has no such
            embedding.
        audio_dim: Width of audio tokens; None takes no audio.
        audio_blocks: Blocks with audio cross-attention, counted over double then single blocks.
        pose_channels: Channels of pose features; None takes no pose.
        reference: Whether reference pictures are accepted.
        reference_slot: Temporal position of reference tokens, in latent frames; the paper has 0, relatives -1 or a far
            slot.
        motion: Whether motion frames are accepted.
        norm_eps: Epsilon of all norms.
    """

    latent_channels: int
    patch_size: tuple[int, int, int]
    hidden_size: int
    num_heads: int
    num_double_blocks: int
    num_single_blocks: int
    mlp_ratio: float
    rope_dims: tuple[int, int, int]
    rope_theta: float
    modulation: Literal["per_block", "shared"]
    clean_modulation: Literal["shared", "zero"]
    segment_embedding: bool
    text_dim: int | None
    text_refiner_depth: int
    text_groups: TextGroups | None
    pooled_dim: int | None
    embedded_guidance: float | None
    audio_dim: int | None
    audio_blocks: tuple[int, ...]
    pose_channels: int | None
    reference: bool
    reference_slot: int
    motion: bool
    norm_eps: float

    def __post_init__(self) -> None:
        # Configs read from TOML carry lists.
        for name in ("patch_size", "rope_dims", "audio_blocks"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("patch_size", "rope_dims"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"MMDiTConfig.{name} must be three integers, got {getattr(self, name)}")
        for name in ("latent_channels", "hidden_size", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"MMDiTConfig.{name} must be at least 1, got {getattr(self, name)}")
        if self.num_blocks < 1 or min(self.num_double_blocks, self.num_single_blocks, self.text_refiner_depth) < 0:
            raise ValueError("MMDiTConfig needs at least one block and no negative block count")
        frames, rows, columns = self.patch_size
        if min(self.patch_size) < 1 or rows != columns:
            raise ValueError(f"MMDiTConfig.patch_size must be at least 1 and square in space, got {self.patch_size}")
        if frames > 1 and (self.audio_dim is not None or self.reference):
            raise ValueError(
                f"MMDiTConfig.patch_size is {frames} in time; audio and reference need 1, since they belong to single "
                "latent frames"
            )
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"MMDiTConfig.hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads}"
            )
        if any(dim % 2 for dim in self.rope_dims) or sum(self.rope_dims) != self.head_dim:
            raise ValueError(
                f"MMDiTConfig.rope_dims must be even numbers that sum to the head width {self.head_dim}, "
                f"got {self.rope_dims}"
            )
        if self.text_dim is None and (self.pooled_dim is not None or self.text_refiner_depth):
            raise ValueError("MMDiTConfig.pooled_dim and text_refiner_depth need a text_dim")
        groups = self.text_groups
        if groups is not None and (
            not self.text_refiner_depth or max(groups.glyph_dim, groups.picture_dim) > (self.text_dim or 0)
        ):
            raise ValueError("MMDiTConfig.text_groups need a text_refiner_depth, and a text_dim as wide as the widest")
        if (self.audio_dim is None) != (not self.audio_blocks):
            raise ValueError("MMDiTConfig.audio_dim and audio_blocks go together: set both or neither")
        if any(not 0 <= block < self.num_blocks for block in self.audio_blocks):
            raise ValueError(
                f"MMDiTConfig.audio_blocks must be block numbers below {self.num_blocks}, got {self.audio_blocks}"
            )
        for name, known in (("modulation", ("per_block", "shared")), ("clean_modulation", ("shared", "zero"))):
            if getattr(self, name) not in known:
                raise ValueError(f"MMDiTConfig.{name} must be one of {known}, got {getattr(self, name)!r}")

    @property
    def num_blocks(self) -> int:
        """Double and single blocks together."""
        return self.num_double_blocks + self.num_single_blocks

    @property
    def head_dim(self) -> int:
        """Width ``K`` of one head."""
        return self.hidden_size // self.num_heads

    @property
    def mlp_size(self) -> int:
        """Width of the MLPs."""
        return int(self.hidden_size * self.mlp_ratio)
