"""HunyuanVideo's pair of text encoders: LLaMA states for the tokens, CLIP for the pooled vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from omnihuman_conditions.language.decoder import LlamaTextConfig, LlamaTextExtractor
from omnihuman_conditions.language.model import LanguageConfig, LanguageExtractor, LanguageModel, check_texts
from omnihuman_conditions.pretrained import WeightDtype
from omnihuman_core.contracts.extractor import TextFeatures


@dataclass(frozen=True, kw_only=True)
class ClipPooledConfig(LanguageConfig):
    """Settings of a :class:`ClipPooled`.

    The model is a CLIP text model, or a whole CLIP model.
    """


class ClipPooled(LanguageExtractor):
    """The pooled vector of a CLIP text model."""

    def __init__(self, config: ClipPooledConfig) -> None:
        """Load the model; nothing is downloaded.

        Raises:
            ValueError: a directory is missing, holds another model, or damaged weights.
        """
        self.config = config
        classes = {"clip_text_model": "CLIPTextModel", "clip": "CLIPTextModel"}
        super().__init__(LanguageModel.load(config, name="clip", classes=classes))

    @torch.no_grad()
    def pooled(self, texts: Sequence[str]) -> Tensor:
        """One vector per text, ``(B, P)``.

        Raises:
            ValueError: ``texts`` is a bare string or has no text.
        """
        # CLIP was trained without a mask: it reads the padding, behind the end token that it pools.
        ids, _ = self._language.tokenize(check_texts(texts), max_tokens=self.config.max_tokens)
        vector: Tensor = self._language.model(ids).pooler_output
        return vector


@dataclass(frozen=True, kw_only=True)
class HunyuanTextConfig:
    """Settings of a :class:`HunyuanTextExtractor`.

    Attributes:
        llama: Where the tokens come from.
        clip: Where the pooled vector comes from.
    """

    llama: LlamaTextConfig
    clip: ClipPooledConfig

    @classmethod
    def hunyuan_video(cls, path: str, *, dtype: WeightDtype = "bfloat16") -> Self:
        """Both text encoders of HunyuanVideo's diffusers folder ``path``."""
        clip = ClipPooledConfig(
            model=str(Path(path) / "text_encoder_2"),
            tokenizer=str(Path(path) / "tokenizer_2"),
            max_tokens=77,
            dtype=dtype,
        )
        return cls(llama=LlamaTextConfig.hunyuan_video(path, dtype=dtype), clip=clip)


class HunyuanTextExtractor:
    """What a HunyuanVideo backbone takes: LLaMA states, their mask, and CLIP's pooled vector."""

    config_class = HunyuanTextConfig

    def __init__(self, config: HunyuanTextConfig) -> None:
        """Load both models; nothing is downloaded.

        Raises:
            ValueError: a directory is missing, holds another model, or damaged weights.
        """
        self.config = config
        self._llama = LlamaTextExtractor(config.llama)
        self._clip = ClipPooled(config.clip)

    def to(self, device: str | torch.device) -> Self:
        """Run on ``device`` from now on."""
        self._llama.to(device)
        self._clip.to(device)
        return self

    def extract(self, raw: Sequence[str]) -> TextFeatures:
        """States ``(B, S, D)``, mask ``(B, S)`` and pooled vectors ``(B, P)``; longer texts are cut with a warning.

        Raises:
            ValueError: ``raw`` is a bare string or has no text.
        """
        features = self._llama.extract(raw)
        return TextFeatures(values=features.values, mask=features.mask, pooled=self._clip.pooled(raw))
