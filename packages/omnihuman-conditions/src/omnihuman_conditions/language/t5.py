"""T5-family encoder states, as Wan takes them."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import torch

from omnihuman_conditions.language.model import LanguageConfig, LanguageExtractor, LanguageModel, check_texts
from omnihuman_conditions.pretrained import WeightDtype
from omnihuman_core.contracts.extractor import TextFeatures


@dataclass(frozen=True, kw_only=True)
class T5TextConfig(LanguageConfig):
    """Settings of a :class:`T5TextExtractor`.

    The model is a T5 or UMT5 encoder.
    """

    @classmethod
    def wan(cls, path: str, *, dtype: WeightDtype = "bfloat16") -> Self:
        """Text encoder of Wan's diffusers folder ``path``."""
        return cls(
            model=str(Path(path) / "text_encoder"), tokenizer=str(Path(path) / "tokenizer"), max_tokens=512, dtype=dtype
        )


class T5TextExtractor(LanguageExtractor):
    """Last hidden states of a T5 or UMT5 encoder; padding is zero, so that it reads as Wan's does without a mask."""

    config_class = T5TextConfig

    def __init__(self, config: T5TextConfig) -> None:
        """Load the model; nothing is downloaded.

        Raises:
            ValueError: a directory is missing, holds another model, or damaged weights.
        """
        self.config = config
        classes = {"t5": "T5EncoderModel", "umt5": "UMT5EncoderModel", "mt5": "MT5EncoderModel"}
        super().__init__(LanguageModel.load(config, name="t5", classes=classes))

    @torch.no_grad()
    def extract(self, raw: Sequence[str]) -> TextFeatures:
        """States ``(B, S, D)`` and mask ``(B, S)`` of ``B`` texts; longer texts are cut with a warning.

        Raises:
            ValueError: ``raw`` is a bare string or has no text.
        """
        texts = [clean(text) for text in check_texts(raw)]
        ids, mask = self._language.tokenize(texts, max_tokens=self.config.max_tokens)
        states = self._language.model(ids, mask).last_hidden_state
        kept = mask.bool()
        return TextFeatures(values=states.masked_fill(~kept[..., None], 0), mask=kept)


def clean(text: str) -> str:
    """A text as Wan's encoder saw it in training: HTML entities resolved, white space made single.

    Broken Unicode is repaired where the package ftfy is installed.
    """
    if find_spec("ftfy") is not None:
        text = import_module("ftfy").fix_text(text)
    return " ".join(html.unescape(html.unescape(text)).split())
