"""HunyuanVideo-1.5 text: Qwen2.5-VL states of the prompt, and behind them ByT5 states of quoted words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch.nn import functional as F

from omnihuman_conditions.language.qwen import (
    GlyphTextConfig,
    GlyphTextExtractor,
    Qwen25VLTextConfig,
    Qwen25VLTextExtractor,
)
from omnihuman_conditions.pretrained import WeightDtype
from omnihuman_core.contracts.extractor import TextFeatures


@dataclass(frozen=True, kw_only=True)
class Hunyuan15TextConfig:
    """Settings of a :class:`Hunyuan15TextExtractor`.

    Attributes:
        prompt: Where the tokens of the prompt come from.
        glyphs: Where the tokens of the words to be written come from.
    """

    prompt: Qwen25VLTextConfig
    glyphs: GlyphTextConfig

    @classmethod
    def hunyuan_video_15(cls, path: str, *, dtype: WeightDtype = "bfloat16") -> Self:
        """Both text encoders of HunyuanVideo-1.5's diffusers folder ``path``."""
        return cls(
            prompt=Qwen25VLTextConfig.hunyuan_video_15(path, dtype=dtype),
            glyphs=GlyphTextConfig.hunyuan_video_15(path, dtype=dtype),
        )


class Hunyuan15TextExtractor:
    """States of both encoders behind each other under one mask, the narrower ones filled up with zeros."""

    config_class = Hunyuan15TextConfig

    def __init__(self, config: Hunyuan15TextConfig) -> None:
        """Load both models; nothing is downloaded.

        Raises:
            ValueError: a directory is missing, holds another model, or damaged weights.
        """
        self.config = config
        self._prompt = Qwen25VLTextExtractor(config.prompt)
        self._glyphs = GlyphTextExtractor(config.glyphs)

    def to(self, device: str | torch.device) -> Self:
        """Run on ``device`` from now on."""
        self._prompt.to(device)
        self._glyphs.to(device)
        return self

    def extract(self, raw: Sequence[str]) -> TextFeatures:
        """States ``(B, S, D)`` and mask ``(B, S)``, ``S`` being the sum of both ``max_tokens``.

        Raises:
            ValueError: ``raw`` is a bare string or has no text, or words are wider than the prompt.
        """
        prompt, glyphs = self._prompt.extract(raw), self._glyphs.extract(raw)
        wider = prompt.values.shape[-1] - glyphs.values.shape[-1]
        if wider < 0:
            raise ValueError(
                f"byt5 states are {-wider} wider than those of qwen2.5-vl; the two are not of one published model"
            )
        filled = F.pad(glyphs.values.to(prompt.values), (0, wider))
        return TextFeatures(
            values=torch.cat([prompt.values, filled], dim=1),  # (B, S, D)
            mask=torch.cat([prompt.mask, glyphs.mask], dim=1),  # (B, S)
        )
