"""HunyuanVideo-1.5's two text inputs: Qwen2.5-VL states of the prompt, ByT5 states of the words to be written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from omnihuman_conditions.language.decoder import DecoderConfig, DecoderExtractor, load_decoder
from omnihuman_conditions.language.model import LanguageConfig, LanguageExtractor, LanguageModel, check_texts
from omnihuman_conditions.pretrained import WeightDtype
from omnihuman_core.contracts.extractor import TextFeatures

# The system message that HunyuanVideo-1.5 was trained with, and the number of tokens in front of the text.
HUNYUAN_VIDEO_15_MESSAGE = (
    "You are a helpful assistant. Describe the video by detailing the following aspects:"
    "         1. The main content and theme of the video."
    "         2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "         3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
    "         4. background environment, light, style and atmosphere."
    "         5. camera angles, movements, and transitions used in the video."
)
HUNYUAN_VIDEO_15_CROP = 108


@dataclass(frozen=True, kw_only=True)
class Qwen25VLTextConfig(DecoderConfig):
    """Settings of a :class:`Qwen25VLTextExtractor`.

    The model is Qwen2.5-VL, whole or its text model alone; its tokenizer has a chat template.

    Attributes:
        system_message: What the model is told before the text.
    """

    system_message: str

    @classmethod
    def hunyuan_video_15(cls, path: str, *, dtype: WeightDtype = "bfloat16") -> Self:
        """First text encoder of HunyuanVideo-1.5's diffusers folder ``path``."""
        return cls(
            model=str(Path(path) / "text_encoder"),
            tokenizer=str(Path(path) / "tokenizer"),
            system_message=HUNYUAN_VIDEO_15_MESSAGE,
            crop_start=HUNYUAN_VIDEO_15_CROP,
            max_tokens=1000,
            skip_layers=2,
            dtype=dtype,
        )


class Qwen25VLTextExtractor(DecoderExtractor):
    """Hidden states of Qwen2.5-VL's language model that reads the text as a user's message."""

    config_class = Qwen25VLTextConfig
    config: Qwen25VLTextConfig

    def __init__(self, config: Qwen25VLTextConfig) -> None:
        """Load the model; nothing is downloaded.

        Raises:
            ValueError: a directory is missing, holds another model, damaged weights, or too few layers, or the
                tokenizer has no chat template.
        """
        self.config = config
        classes = {"qwen2_5_vl_text": "Qwen2_5_VLTextModel", "qwen2_5_vl": "Qwen2_5_VLModel"}
        super().__init__(load_decoder(config, name="qwen2.5-vl", classes=classes))
        if not self._language.tokenizer.chat_template:
            raise ValueError(f"qwen2.5-vl tokenizer has no chat template: {config.tokenizer}")

    def extract(self, raw: Sequence[str]) -> TextFeatures:
        """States ``(B, S, D)`` and mask ``(B, S)`` of ``B`` texts; longer texts are cut with a warning.

        Raises:
            ValueError: ``raw`` is a bare string or has no text, or the chat is shorter than ``crop_start``.
        """
        config = self.config
        chats = [
            [{"role": "system", "content": config.system_message}, {"role": "user", "content": text or " "}]
            for text in check_texts(raw)
        ]
        texts = self._language.tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
        return self._states(texts, special_tokens=False)


@dataclass(frozen=True, kw_only=True)
class GlyphTextConfig(LanguageConfig):
    """Settings of a :class:`GlyphTextExtractor`.

    The model is a ByT5 encoder.
    """

    @classmethod
    def hunyuan_video_15(cls, path: str, *, dtype: WeightDtype = "bfloat16") -> Self:
        """Second text encoder of HunyuanVideo-1.5's diffusers folder ``path``."""
        return cls(
            model=str(Path(path) / "text_encoder_2"),
            tokenizer=str(Path(path) / "tokenizer_2"),
            max_tokens=256,
            dtype=dtype,
        )


class GlyphTextExtractor(LanguageExtractor):
    """ByT5 states of the words that a prompt puts in quotation marks; zeros and an empty mask where there are none."""

    config_class = GlyphTextConfig

    def __init__(self, config: GlyphTextConfig) -> None:
        """Load the model; nothing is downloaded.

        Raises:
            ValueError: a directory is missing, holds another model, or damaged weights.
        """
        self.config = config
        super().__init__(LanguageModel.load(config, name="byt5", classes={"t5": "T5EncoderModel"}))

    @torch.no_grad()
    def extract(self, raw: Sequence[str]) -> TextFeatures:
        """States ``(B, S, D)`` and mask ``(B, S)`` of ``B`` texts; an unquoted text has an empty mask.

        Raises:
            ValueError: ``raw`` is a bare string or has no text.
        """
        glyphs = [glyph_text(text) for text in check_texts(raw)]
        ids, mask = self._language.tokenize([text or "" for text in glyphs], max_tokens=self.config.max_tokens)
        states = self._language.model(ids, attention_mask=mask.float()).last_hidden_state
        quoted = torch.tensor([text is not None for text in glyphs], device=mask.device)
        values = states.masked_fill(~quoted[:, None, None], 0)  # (B, S, D)
        return TextFeatures(values=values, mask=mask.bool() & quoted[:, None])


def glyph_text(prompt: str) -> str | None:
    """``Text "a". Text "b". `` of the parts of a prompt in straight or curly quotation marks; None without any."""
    parts = [straight or curly for straight, curly in re.findall(r'"(.*?)"|“(.*?)”', prompt)]
    return "".join(f'Text "{part}". ' for part in dict.fromkeys(parts)) or None
