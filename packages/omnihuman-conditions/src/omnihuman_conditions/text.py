"""Text for the small model: words as bytes, no vocabulary file, no download."""

from __future__ import annotations

import string
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from omnihuman_core.contracts.conditioning import TextCondition
from omnihuman_core.contracts.extractor import TextFeatures


@dataclass(frozen=True, kw_only=True)
class ByteTextExtractorConfig:
    """Limits of a text.

    Attributes:
        max_words: Words ``S`` of a text; every result has this many, masked.
        max_bytes: UTF-8 bytes ``W`` kept of a word.
    """

    max_words: int
    max_bytes: int

    def __post_init__(self) -> None:
        if self.max_words < 1 or self.max_bytes < 1:
            raise ValueError(
                "max_words and max_bytes must be at least 1, "
                f"got max_words={self.max_words}, max_bytes={self.max_bytes}"
            )

    @classmethod
    def tiny(cls) -> Self:
        """24 words of 12 bytes."""
        return cls(max_words=24, max_bytes=12)


class ByteTextExtractor:
    """Lower-cased words without surrounding punctuation, as byte ids.

    Id 0 is "no byte", id ``b + 1`` is byte ``b``. The empty text is one word without bytes.

    Example:
        >>> features = ByteTextExtractor(ByteTextExtractorConfig.tiny()).extract(["A red coat."])
        >>> features.values.shape, int(features.mask.sum())
        (torch.Size([1, 24, 12]), 3)
    """

    config_class = ByteTextExtractorConfig
    presets: ClassVar[dict[str, Callable[[], ByteTextExtractorConfig]]] = {"tiny": ByteTextExtractorConfig.tiny}

    def __init__(self, config: ByteTextExtractorConfig) -> None:
        self.config = config

    def extract(self, raw: Sequence[str]) -> TextFeatures:
        """Ids ``(B, S, W)`` int64 and mask ``(B, S)`` of ``B`` texts; words past ``max_words`` are cut with a warning.

        Raises:
            ValueError: ``raw`` is a bare string or has no text.
        """
        if isinstance(raw, str) or not raw:
            raise ValueError("texts must be a list of at least one string")
        max_words, max_bytes = self.config.max_words, self.config.max_bytes
        ids = torch.zeros(len(raw), max_words, max_bytes, dtype=torch.int64)
        mask = torch.zeros(len(raw), max_words, dtype=torch.bool)
        for row, text in enumerate(raw):
            words = [word for part in text.lower().split() if (word := part.strip(string.punctuation))]
            if len(words) > max_words:
                warnings.warn(f"text has {len(words)} words, only the first {max_words} are used", stacklevel=2)
                words = words[:max_words]
            mask[row, : max(len(words), 1)] = True
            for column, word in enumerate(words):
                data = word.encode("utf-8", errors="replace")[:max_bytes]
                ids[row, column, : len(data)] = torch.tensor(list(data)) + 1
        return TextFeatures(values=ids, mask=mask)


@dataclass(frozen=True, kw_only=True)
class ByteTextEncoderConfig:
    """Architecture of a :class:`ByteTextEncoder`.

    Attributes:
        max_words: Longest text in words.
        max_bytes: Longest word in bytes.
        hidden_dim: Width of the byte embeddings and of the MLPs.
        token_dim: Width ``D_text`` of a token.
        pooled_dim: Width ``P`` of the pooled vector.
    """

    max_words: int
    max_bytes: int
    hidden_dim: int
    token_dim: int
    pooled_dim: int

    def __post_init__(self) -> None:
        for name in ("max_words", "max_bytes", "hidden_dim", "token_dim", "pooled_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"ByteTextEncoderConfig.{name} must be at least 1, got {getattr(self, name)}")

    @classmethod
    def tiny(cls) -> Self:
        """Tokens and pooled vector of width 128."""
        return cls(max_words=24, max_bytes=12, hidden_dim=128, token_dim=128, pooled_dim=128)


class ByteTextEncoder(nn.Module):
    """One token per word, from its bytes.

    A word's bytes pass an MLP together with their place in the word before they are summed, so that anagrams differ.
    The empty text encodes to the null.

    Example:
        >>> extractor = ByteTextExtractor(ByteTextExtractorConfig.tiny())
        >>> encoder = ByteTextEncoder(ByteTextEncoderConfig.tiny())
        >>> encoder.encode(extractor.extract(["A red coat."])).tokens.shape
        torch.Size([1, 24, 128])
    """

    config_class = ByteTextEncoderConfig
    presets: ClassVar[dict[str, Callable[[], ByteTextEncoderConfig]]] = {"tiny": ByteTextEncoderConfig.tiny}

    def __init__(self, config: ByteTextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.byte_embedding = nn.Embedding(257, config.hidden_dim)
        self.byte_position = nn.Parameter(torch.randn(config.max_bytes, config.hidden_dim))
        self.byte_mlp = nn.Sequential(
            nn.Linear(config.hidden_dim, config.hidden_dim), nn.GELU(), nn.Linear(config.hidden_dim, config.hidden_dim)
        )
        self.word_mlp = nn.Sequential(
            nn.LayerNorm(config.hidden_dim),
            nn.Linear(config.hidden_dim, config.hidden_dim),
            nn.GELU(),
            nn.Linear(config.hidden_dim, config.token_dim),
            nn.LayerNorm(config.token_dim),
        )
        self.word_position = nn.Parameter(torch.randn(config.max_words, config.token_dim) * 0.3)
        self.null_token = nn.Parameter(torch.randn(config.token_dim))
        self.pooled_mlp = nn.Sequential(
            nn.Linear(config.token_dim, config.hidden_dim), nn.GELU(), nn.Linear(config.hidden_dim, config.pooled_dim)
        )

    def encode(self, features: TextFeatures) -> TextCondition:
        """Tokens ``(B, S, token_dim)``, their mask, and the pooled vector ``(B, pooled_dim)``.

        Raises:
            ValueError: the ids are not ``(B, S, W)`` within the limits of the config.
        """
        ids, mask = features.values, features.mask
        limits = (self.config.max_words, self.config.max_bytes)
        if ids.ndim != 3 or ids.shape[1] > limits[0] or ids.shape[2] > limits[1]:
            raise ValueError(f"text ids must be (B, S <= {limits[0]}, W <= {limits[1]}), got {tuple(ids.shape)}")
        present = ids != 0
        letters = self.byte_mlp(self.byte_embedding(ids) + self.byte_position[: ids.shape[2]])  # (B, S, W, hidden)
        words = (letters * present[..., None]).sum(2)  # (B, S, hidden)
        tokens = self.word_mlp(words) + self.word_position[: ids.shape[1]]  # (B, S, D)
        tokens = torch.where(present.any(2)[..., None], tokens, self.null_token.to(tokens.dtype))
        return TextCondition(tokens=tokens, mask=mask, pooled=self._pool(tokens, mask))

    def null(self, like: TextCondition) -> TextCondition:
        """One learned "no text" token and its pooled vector, in the shapes of ``like``."""
        tokens = self.null_token.to(like.tokens).expand_as(like.tokens)
        mask = torch.zeros_like(like.mask)
        mask[:, 0] = True
        return TextCondition(tokens=tokens, mask=mask, pooled=self._pool(tokens, mask).to(like.tokens.dtype))

    def forward(self, features: TextFeatures) -> TextCondition:
        """Same as :meth:`encode`."""
        return self.encode(features)

    def _pool(self, tokens: Tensor, mask: Tensor) -> Tensor:
        weight = mask.to(tokens.dtype)[..., None]
        mean = (tokens * weight).sum(1) / weight.sum(1)  # (B, D)
        pooled: Tensor = self.pooled_mlp(mean.to(self.null_token.dtype))
        return pooled
