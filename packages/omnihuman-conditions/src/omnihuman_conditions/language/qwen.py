"""HunyuanVideo-1.5's two text inputs: Qwen2.5-VL states of the prompt, ByT5 states of the words to be written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from omnihuman_conditions.language.decoder import load_decoder
from omnihuman_conditions.language.model import LanguageModel, check_texts, crop
from omnihuman_conditions.pretrained import WeightDtype, check_dtype
from omnihuman_core.contracts.encoder import TextFeatures

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
class Qwen25VLTextConfig:
    """Settings of a :class:`Qwen25VLTextExtractor`.

    Attributes:
        model: Local directory of Qwen2.5-VL, whole or its text model alone, with safetensors weights.
        tokenizer: Local directory of its tokenizer, with a chat template.
        system_message: What the model is told before the text.
        crop_start: Tokens of the chat in front of the text, dropped from the result.
        max_tokens: Tokens ``S`` that are left; every result has this many, masked.
        skip_layers: Layers at the end that are left out; 0 takes the normed output of the last one.
        dtype: Precision of the weights and of the states.
    """

    model: str
    tokenizer: str
    system_message: str
    crop_start: int
    max_tokens: int
    skip_layers: int
    dtype: WeightDtype

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.crop_start < 0 or self.skip_layers < 0:
            raise ValueError(
                "Qwen25VLTextConfig needs max_tokens >= 1, crop_start >= 0 and skip_layers >= 0, "
                f"got {self.max_tokens}, {self.crop_start} and {self.skip_layers}"
            )
        check_dtype("Qwen25VLTextConfig.dtype", self.dtype)

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


class Qwen25VLTextExtractor:
    """Hidden states of Qwen2.5-VL's language model that reads the text as a user's message."""

    config_class = Qwen25VLTextConfig

    def __init__(self, config: Qwen25VLTextConfig) -> None:
        """Load the model; nothing is downloaded.

        Raises:
            ValueError: a directory is missing, holds another model, damaged weights, or too few layers, or the
                tokenizer has no chat template.
        """
        self.config = config
        self._language = load_decoder(
            name="qwen2.5-vl",
            model=config.model,
            tokenizer=config.tokenizer,
            classes={"qwen2_5_vl_text": "Qwen2_5_VLTextModel", "qwen2_5_vl": "Qwen2_5_VLModel"},
            skip_layers=config.skip_layers,
            dtype=config.dtype,
        )
        if not self._language.tokenizer.chat_template:
            raise ValueError(f"qwen2.5-vl tokenizer has no chat template: {config.tokenizer}")

    def to(self, device: str | torch.device) -> Self:
        """Run on ``device`` from now on."""
        self._language.to(device)
        return self

    @torch.no_grad()
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
        ids, mask = self._language.tokenize(
            texts, max_tokens=config.max_tokens + config.crop_start, special_tokens=False
        )
        states = self._language.model(input_ids=ids, attention_mask=mask).last_hidden_state
        values, kept = crop(states, mask, config.crop_start)
        return TextFeatures(values=values, mask=kept)


@dataclass(frozen=True, kw_only=True)
class GlyphTextConfig:
    """Settings of a :class:`GlyphTextExtractor`.

    Attributes:
        model: Local directory of a ByT5 encoder in the transformers layout, with safetensors weights.
        tokenizer: Local directory of its tokenizer.
        max_tokens: Tokens ``S`` of a text; every result has this many, masked.
        dtype: Precision of the weights and of the states.
    """

    model: str
    tokenizer: str
    max_tokens: int
    dtype: WeightDtype

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"GlyphTextConfig.max_tokens must be at least 1, got {self.max_tokens}")
        check_dtype("GlyphTextConfig.dtype", self.dtype)

    @classmethod
    def hunyuan_video_15(cls, path: str, *, dtype: WeightDtype = "bfloat16") -> Self:
        """Second text encoder of HunyuanVideo-1.5's diffusers folder ``path``."""
        return cls(
            model=str(Path(path) / "text_encoder_2"),
            tokenizer=str(Path(path) / "tokenizer_2"),
            max_tokens=256,
            dtype=dtype,
        )


class GlyphTextExtractor:
    """ByT5 states of the words that a prompt puts in quotation marks; zeros and an empty mask where there are none."""

    config_class = GlyphTextConfig

    def __init__(self, config: GlyphTextConfig) -> None:
        """Load the model; nothing is downloaded.

        Raises:
            ValueError: a directory is missing, holds another model, or damaged weights.
        """
        self.config = config
        self._language = LanguageModel.load(
            name="byt5",
            model=config.model,
            tokenizer=config.tokenizer,
            classes={"t5": "T5EncoderModel"},
            dtype=config.dtype,
        )

    def to(self, device: str | torch.device) -> Self:
        """Run on ``device`` from now on."""
        self._language.to(device)
        return self

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
