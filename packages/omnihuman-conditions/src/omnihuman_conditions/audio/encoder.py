"""Trainable audio encoder: aligned states to the audio tokens of each latent frame (paper section 3.2).

The paper: wav2vec features pass an MLP to the width of the backbone, and the features of a frame are concatenated with
those of adjacent time stamps to give the audio tokens of that frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from einops import rearrange
from torch import Tensor, nn

from omnihuman_conditions.audio.alignment import adjacent_frames, group_to_latent_frames
from omnihuman_core.contracts.conditioning import AudioCondition


@dataclass(frozen=True, kw_only=True)
class AudioEncoderConfig:
    """Architecture of an :class:`AudioEncoder`.

    Attributes:
        num_layers: Extractor layers in the input.
        feature_dim: Width ``D`` of one state.
        feature_norm: Layer-normalise each state first. Right for transformer states, whose scale varies by layer; wrong
            for log-mel, where it would turn silence and faint noise into something loud.
        layer_mix: ``softmax`` learns one weight per layer, ``concat`` keeps all layers side by side.
        window: Odd number of adjacent frames in one token.
        hidden_dim: Width of the MLP.
        token_dim: Width ``D_audio`` of a token.
        temporal_stride: Pixel frames behind a latent frame = tokens ``A`` per latent frame.
    """

    num_layers: int
    feature_dim: int
    feature_norm: bool
    layer_mix: Literal["softmax", "concat"]
    window: int
    hidden_dim: int
    token_dim: int
    temporal_stride: int

    def __post_init__(self) -> None:
        for name in ("num_layers", "feature_dim", "hidden_dim", "token_dim", "temporal_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"AudioEncoderConfig.{name} must be at least 1, got {getattr(self, name)}")
        if self.window < 1 or self.window % 2 == 0:
            raise ValueError(f"AudioEncoderConfig.window must be odd, got {self.window}")
        if self.layer_mix not in ("softmax", "concat"):
            raise ValueError(f"AudioEncoderConfig.layer_mix must be softmax or concat, got {self.layer_mix!r}")

    @classmethod
    def tiny(cls) -> Self:
        """For the stacked log-mel states of the small model; one token sees 3 frames to either side."""
        return cls(
            num_layers=1,
            feature_dim=160,
            feature_norm=False,
            layer_mix="softmax",
            window=7,
            hidden_dim=256,
            token_dim=128,
            temporal_stride=4,
        )

    @classmethod
    def wav2vec2_base(cls, *, num_layers: int = 4) -> Self:
        """For ``num_layers`` chosen hidden states of a wav2vec 2.0 base model."""
        return cls(
            num_layers=num_layers,
            feature_dim=768,
            feature_norm=True,
            layer_mix="softmax",
            window=5,
            hidden_dim=1024,
            token_dim=768,
            temporal_stride=4,
        )

    @classmethod
    def wav2vec2_large(cls, *, num_layers: int = 4) -> Self:
        """For ``num_layers`` chosen hidden states of a large wav2vec 2.0 or XLS-R 300M model."""
        return replace(cls.wav2vec2_base(num_layers=num_layers), feature_dim=1024)

    @classmethod
    def whisper_large(cls, *, num_layers: int = 4) -> Self:
        """For ``num_layers`` chosen hidden states of a large Whisper encoder."""
        return replace(cls.wav2vec2_base(num_layers=num_layers), feature_dim=1280)


class AudioEncoder(nn.Module):
    """Layer mix, window of adjacent frames, MLP, then ``temporal_stride`` tokens per latent frame with slot embeddings.

    Example:
        >>> encoder = AudioEncoder(AudioEncoderConfig.tiny())
        >>> encoder.encode(torch.zeros(2, 49, 1, 160)).tokens.shape
        torch.Size([2, 13, 4, 128])
    """

    config_class = AudioEncoderConfig
    presets: ClassVar[dict[str, Callable[[], AudioEncoderConfig]]] = {
        "tiny": AudioEncoderConfig.tiny,
        "wav2vec2_base": AudioEncoderConfig.wav2vec2_base,
        "wav2vec2_large": AudioEncoderConfig.wav2vec2_large,
        "whisper_large": AudioEncoderConfig.whisper_large,
    }

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.feature_dim * (config.num_layers if config.layer_mix == "concat" else 1)
        self.feature_norm = nn.LayerNorm(config.feature_dim) if config.feature_norm else nn.Identity()
        self.layer_weights = nn.Parameter(torch.zeros(config.num_layers)) if config.layer_mix == "softmax" else None
        self.in_proj = nn.Linear(config.window * width, config.hidden_dim)
        self.mlp = nn.Sequential(
            nn.LayerNorm(config.hidden_dim),
            nn.Linear(config.hidden_dim, config.hidden_dim),
            nn.GELU(),
            nn.Linear(config.hidden_dim, config.hidden_dim),
        )
        self.norm = nn.LayerNorm(config.hidden_dim)
        self.out_proj = nn.Linear(config.hidden_dim, config.token_dim)
        self.slot = nn.Parameter(torch.randn(config.temporal_stride, config.token_dim) * 0.2)
        self.null_token = nn.Parameter(torch.randn(config.temporal_stride, config.token_dim) * 0.5)

    def frame_states(self, aligned: Tensor) -> Tensor:
        """States of each pixel frame, before they are grouped into latent frames.

        A training-time auxiliary head (mouth opening, visemes) may read them; generation does not need them.

        Args:
            aligned: ``(B, T, layers, D)`` states at frame centres.

        Returns:
            ``(B, T, hidden_dim)``.

        Raises:
            ValueError: the layers or the width differ from the config.
        """
        expected = (self.config.num_layers, self.config.feature_dim)
        if aligned.ndim != 4 or tuple(aligned.shape[2:]) != expected:
            raise ValueError(f"aligned audio must be (B, T, {expected[0]}, {expected[1]}), got {tuple(aligned.shape)}")
        x = self.feature_norm(aligned)
        if self.layer_weights is None:
            x = rearrange(x, "b t layers d -> b t (layers d)")  # (B, T, layers * D)
        else:
            x = torch.einsum("b t l d, l -> b t d", x, self.layer_weights.softmax(0).to(x.dtype))  # (B, T, D)
        x = rearrange(adjacent_frames(x, self.config.window), "b t w d -> b t (w d)")  # (B, T, window * D)
        x = nn.functional.gelu(self.in_proj(x))
        states: Tensor = self.norm(x + self.mlp(x))
        return states

    def encode(self, features: Tensor) -> AudioCondition:
        """Audio tokens of each latent frame.

        Args:
            features: Aligned states ``(B, T, layers, D)``, ``T = 1 + k * temporal_stride``.

        Returns:
            Tokens ``(B, t, A, token_dim)`` with ``A = temporal_stride``.
        """
        tokens = group_to_latent_frames(self.out_proj(self.frame_states(features)), self.config.temporal_stride)
        return AudioCondition(tokens=tokens + self.slot)

    def null(self, like: AudioCondition) -> AudioCondition:
        """The learned "no audio" tokens, in the shape of ``like``."""
        return AudioCondition(tokens=self.null_token.to(like.tokens).expand_as(like.tokens))

    def forward(self, features: Tensor) -> AudioCondition:
        """Same as :meth:`encode`."""
        return self.encode(features)
