"""Moods named in a prompt, and the tokens they become."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from omnihuman_core.contracts import TextCondition, TextFeatures


@dataclass(frozen=True, kw_only=True)
class MoodExtractorConfig:
    """What a :class:`MoodExtractor` looks for.

    Attributes:
        moods: The vocabulary, lower case; its order is the order of the ids.
    """

    moods: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.moods or len(set(self.moods)) != len(self.moods):
            raise ValueError(f"MoodExtractorConfig.moods must be different words, at least one, got {self.moods}")


class MoodExtractor:
    """Implements ``FeatureExtractor``: frozen, without weights."""

    config_class: ClassVar[type[MoodExtractorConfig]] = MoodExtractorConfig

    def __init__(self, config: MoodExtractorConfig) -> None:
        self.config = config

    def extract(self, raw: Sequence[str]) -> TextFeatures:
        """Ids ``(B, S)`` of the moods in ``B`` prompts, ``S`` the size of the vocabulary; id 0 is "no mood"."""
        moods = self.config.moods
        values = torch.zeros(len(raw), len(moods), dtype=torch.int64)
        for row, prompt in zip(values, raw, strict=True):
            words = set(re.findall(r"\w+", prompt.lower()))
            found = [index + 1 for index, mood in enumerate(moods) if mood in words]
            row[: len(found)] = torch.tensor(found, dtype=torch.int64)
        mask = values > 0
        # A prompt without a mood is one token that says so: attention needs something to look at.
        mask[:, 0] = True
        return TextFeatures(values=values, mask=mask)


@dataclass(frozen=True, kw_only=True)
class MoodEncoderConfig:
    """Sizes of a :class:`MoodEncoder`.

    Attributes:
        num_moods: Size of the vocabulary.
        token_dim: Width of a token.
        pooled_dim: Width of the pooled vector.
    """

    num_moods: int
    token_dim: int
    pooled_dim: int


class MoodEncoder(nn.Module):
    """Implements ``ConditionEncoder``: one learned token a mood; token 0, "no mood", is the null."""

    config_class: ClassVar[type[MoodEncoderConfig]] = MoodEncoderConfig

    def __init__(self, config: MoodEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.num_moods + 1, config.token_dim)
        self.pooled = nn.Linear(config.token_dim, config.pooled_dim)

    def encode(self, features: TextFeatures) -> TextCondition:
        """Tokens ``(B, S, token_dim)``, their mask, and their pooled mean ``(B, pooled_dim)``."""
        tokens = self.tokens(features.values)
        return TextCondition(tokens=tokens, mask=features.mask, pooled=self._pool(tokens, features.mask))

    def null(self, like: TextCondition) -> TextCondition:
        """ "No mood", in the shapes of ``like``."""
        tokens = self.tokens.weight[0].to(like.tokens).expand_as(like.tokens)
        mask = torch.zeros_like(like.mask)
        mask[:, 0] = True
        return TextCondition(tokens=tokens, mask=mask, pooled=self._pool(tokens, mask))

    def _pool(self, tokens: Tensor, mask: Tensor) -> Tensor:
        weights = mask[..., None].to(tokens.dtype)
        pooled: Tensor = self.pooled((tokens * weights).sum(1) / weights.sum(1))
        return pooled
