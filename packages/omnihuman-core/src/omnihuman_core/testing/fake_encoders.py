"""Tiny extractors and encoders of text, audio and pose, which need the contracts alone (see :mod:`.fakes`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from einops import rearrange, repeat
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from omnihuman_core.contracts.conditioning import AudioCondition, PoseCondition, TextCondition
from omnihuman_core.contracts.extractor import SAMPLE_RATE, AudioFeatures, TextFeatures


@dataclass(frozen=True, kw_only=True)
class FakeTextExtractorConfig:
    """Configuration of :class:`FakeTextExtractor`.

    Attributes:
        max_tokens: Longest text in bytes.
    """

    max_tokens: int = 16


class FakeTextExtractor:
    """Bytes of strings as ids 1-256; 0 pads."""

    config_class: ClassVar[type[FakeTextExtractorConfig]] = FakeTextExtractorConfig

    def __init__(self, config: FakeTextExtractorConfig) -> None:
        self.config = config

    def extract(self, raw: list[str]) -> TextFeatures:
        """Ids ``(B, max_tokens)`` of ``B`` strings."""
        values = torch.zeros(len(raw), self.config.max_tokens, dtype=torch.long)
        for row, text in zip(values, raw, strict=True):
            data = text.encode()[: self.config.max_tokens]
            row[: len(data)] = torch.tensor(list(data), dtype=torch.long) + 1
        return TextFeatures(values=values, mask=values > 0)


@dataclass(frozen=True, kw_only=True)
class FakeTextEncoderConfig:
    """Configuration of :class:`FakeTextEncoder`.

    Attributes:
        dim: Width of a token.
    """

    dim: int = 8


class FakeTextEncoder(nn.Module):
    """Embeds ids; the null is one learned token, then padding."""

    config_class: ClassVar[type[FakeTextEncoderConfig]] = FakeTextEncoderConfig

    def __init__(self, config: FakeTextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(257, config.dim)
        self.null_token = nn.Parameter(torch.full((config.dim,), 0.5))

    def encode(self, features: TextFeatures) -> TextCondition:
        """Tokens ``(B, S, D)``."""
        return TextCondition(tokens=self.embedding(features.values) * features.mask[..., None], mask=features.mask)

    def null(self, like: TextCondition) -> TextCondition:
        """One learned token that counts."""
        mask = torch.zeros_like(like.mask)
        mask[:, 0] = True
        tokens = self.null_token.to(like.tokens) * mask[..., None]
        return TextCondition(tokens=tokens, mask=mask)


@dataclass(frozen=True, kw_only=True)
class FakeAudioExtractorConfig:
    """Configuration of :class:`FakeAudioExtractor`.

    Attributes:
        rate: States per second, a divisor of 16,000.
    """

    rate: int = 50


class FakeAudioExtractor:
    """Loudness and its square root in steps of ``1 / rate`` seconds: two values a state, one layer."""

    config_class: ClassVar[type[FakeAudioExtractorConfig]] = FakeAudioExtractorConfig

    def __init__(self, config: FakeAudioExtractorConfig) -> None:
        self.config = config

    def extract(self, raw: Tensor) -> AudioFeatures:
        """States ``(B, n, 1, 2)`` of a waveform ``(B, samples)`` at 16 kHz."""
        hop = SAMPLE_RATE // self.config.rate
        padded = F.pad(raw.detach(), (0, -raw.shape[1] % hop))
        power = rearrange(padded, "B (n s) -> B n s", s=hop).pow(2).mean(-1)
        values = torch.stack([power, power.sqrt()], dim=-1)[:, :, None]  # (B, n, 1, 2)
        return AudioFeatures(values=values, rate=float(self.config.rate), offset=0.5 / self.config.rate)

    def align(self, features: AudioFeatures, *, fps: float, num_frames: int, first_frame: int = 0) -> Tensor:
        """The state nearest to each frame's centre, ``(B, T, 1, 2)``; the last one after the end of the sound."""
        times = (torch.arange(first_frame, first_frame + num_frames) + 0.5) / fps
        index = ((times - features.offset) * features.rate).round().long()
        return features.values[:, index.clamp(0, features.values.shape[1] - 1)]

    def silence(self, seconds: float) -> Tensor:
        """A silent waveform ``(samples,)``."""
        return torch.zeros(max(1, round(seconds * SAMPLE_RATE)))


@dataclass(frozen=True, kw_only=True)
class FakeAudioEncoderConfig:
    """Configuration of :class:`FakeAudioEncoder`.

    Attributes:
        dim: Width of a token.
        temporal_stride: Pixel frames of a latent frame.
        input_dim: Values of a frame.
    """

    dim: int = 8
    temporal_stride: int = 2
    input_dim: int = 2


class FakeAudioEncoder(nn.Module):
    """One token a pixel frame; the first latent frame repeats its only one."""

    config_class: ClassVar[type[FakeAudioEncoderConfig]] = FakeAudioEncoderConfig

    def __init__(self, config: FakeAudioEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.projection = nn.Linear(config.input_dim, config.dim)
        self.null_token = nn.Parameter(torch.full((config.dim,), 0.5))

    def encode(self, features: Tensor) -> AudioCondition:
        """Tokens ``(B, t, temporal_stride, D)`` of frame-aligned features ``(B, T, layers, D)``."""
        stride = self.config.temporal_stride
        frames = self.projection(rearrange(features, "B T l D -> B T (l D)"))
        padded = torch.cat([repeat(frames[:, :1], "B 1 D -> B k D", k=stride - 1), frames], dim=1)
        return AudioCondition(tokens=rearrange(padded, "B (t k) D -> B t k D", k=stride))

    def null(self, like: AudioCondition) -> AudioCondition:
        """The learned token everywhere."""
        return AudioCondition(tokens=self.null_token.to(like.tokens).expand_as(like.tokens).clone())


@dataclass(frozen=True, kw_only=True)
class FakePoseExtractorConfig:
    """Configuration of :class:`FakePoseExtractor`.

    Attributes:
        threshold: Keypoints of a lower score are not drawn.
    """

    threshold: float = 0.3


class FakePoseExtractor:
    """Draws each keypoint as one white pixel."""

    config_class: ClassVar[type[FakePoseExtractorConfig]] = FakePoseExtractorConfig

    def __init__(self, config: FakePoseExtractorConfig) -> None:
        self.config = config

    def extract(self, raw: Tensor, *, size: tuple[int, int] = (8, 8)) -> Tensor:
        """Maps ``(3, T, H, W)`` in [0, 1] of keypoints ``(T, 133, 3)``: normalised x, y and a score."""
        height, width = size
        maps = torch.zeros(3, raw.shape[0], height, width)
        frame, point = torch.nonzero(raw[..., 2] >= self.config.threshold, as_tuple=True)
        x = (raw[frame, point, 0] * width).long().clamp(0, width - 1)
        y = (raw[frame, point, 1] * height).long().clamp(0, height - 1)
        maps[:, frame, y, x] = 1.0
        return maps

    def load(self, path: Path, *, fps: float) -> Tensor:
        """Keypoints ``(T, 133, 3)`` of a safetensors file with ``keypoints`` and their rate ``fps``."""
        held = load_file(path)
        keypoints, rate = held["keypoints"], float(held["fps"])
        frames = round(len(keypoints) / rate * fps)
        index = ((torch.arange(frames) + 0.5) / fps * rate).long()
        return keypoints[index.clamp(0, len(keypoints) - 1)]


@dataclass(frozen=True, kw_only=True)
class FakePoseEncoderConfig:
    """Configuration of :class:`FakePoseEncoder`.

    Attributes:
        channels: Pose features.
        temporal_stride: Pixel frames of a latent frame.
        spatial_stride: Pixels of a latent position, each way.
    """

    channels: int = 4
    temporal_stride: int = 2
    spatial_stride: int = 2


class FakePoseEncoder(nn.Module):
    """Averages maps over the pixels of each latent position, then mixes channels."""

    config_class: ClassVar[type[FakePoseEncoderConfig]] = FakePoseEncoderConfig

    def __init__(self, config: FakePoseEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.projection = nn.Conv3d(3, config.channels, 1)
        self.null_feature = nn.Parameter(torch.full((config.channels,), 0.5))

    def encode(self, features: Tensor) -> PoseCondition:
        """Features ``(B, C_pose, t, h, w)`` of maps ``(B, 3, T, H, W)`` in [0, 1]."""
        stride, pixels = self.config.temporal_stride, self.config.spatial_stride
        padded = torch.cat([repeat(features[:, :, :1], "B C 1 H W -> B C k H W", k=stride - 1), features], dim=2)
        pooled = F.avg_pool3d(padded, (stride, pixels, pixels))
        return PoseCondition(features=self.projection(pooled))

    def null(self, like: PoseCondition) -> PoseCondition:
        """The learned feature everywhere."""
        feature = self.null_feature.to(like.features).view(1, -1, 1, 1, 1)
        return PoseCondition(features=feature.expand_as(like.features).clone())


FAKE_PLUGINS = {
    "video_vae": {"fake": "omnihuman_core.testing.fakes:FakeVAE"},
    "backbone": {"fake": "omnihuman_core.testing.fakes:FakeBackbone"},
    "feature_extractor": {
        "fake_text": "omnihuman_core.testing.fake_encoders:FakeTextExtractor",
        "fake_audio": "omnihuman_core.testing.fake_encoders:FakeAudioExtractor",
        "fake_pose": "omnihuman_core.testing.fake_encoders:FakePoseExtractor",
    },
    "condition_encoder": {
        "fake_text": "omnihuman_core.testing.fake_encoders:FakeTextEncoder",
        "fake_audio": "omnihuman_core.testing.fake_encoders:FakeAudioEncoder",
        "fake_pose": "omnihuman_core.testing.fake_encoders:FakePoseEncoder",
    },
}
"""Entry points of all fakes, for :func:`omnihuman_core.testing.registration.write_distribution`."""
