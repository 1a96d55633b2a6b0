"""Hidden states of LLaMA-family decoders under a prompt template, as HunyuanVideo takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from omnihuman_conditions.language.model import LanguageConfig, LanguageExtractor, LanguageModel, check_texts, crop
from omnihuman_conditions.pretrained import WeightDtype
from omnihuman_core.contracts.extractor import TextFeatures

# The prompt that HunyuanVideo was trained with, and the number of its tokens in front of the text.
HUNYUAN_VIDEO_TEMPLATE = (
    "<|start_header_id|>system<|end_header_id|>\n\nDescribe the video by detailing the following aspects: "
    "1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
    "4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
)
HUNYUAN_VIDEO_CROP = 95


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(LanguageConfig):
    """Settings of a :class:`DecoderExtractor`, whose ``max_tokens`` are those behind ``crop_start``.

    Attributes:
        crop_start: Tokens in front of the text, dropped from the result.
        skip_layers: Layers at the end that are left out; 0 takes the normed output of the last one.
    """

    crop_start: int
    skip_layers: int

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("crop_start", "skip_layers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{type(self).__name__}.{name} must be at least 0, got {getattr(self, name)}")


class DecoderExtractor(LanguageExtractor):
    """Hidden states of a decoder that reads the text behind words of its own."""

    config: DecoderConfig

    @torch.no_grad()
    def _states(self, texts: list[str], *, special_tokens: bool = True) -> TextFeatures:
        """States of texts with what stands round them."""
        config = self.config
        ids, mask = self._language.tokenize(
            texts, max_tokens=config.max_tokens + config.crop_start, special_tokens=special_tokens
        )
        states = self._language.model(input_ids=ids, attention_mask=mask).last_hidden_state
        values, kept = crop(states, mask, config.crop_start)
        return TextFeatures(values=values, mask=kept)


@dataclass(frozen=True, kw_only=True)
class LlamaTextConfig(DecoderConfig):
    """Settings of a :class:`LlamaTextExtractor`.

    The model is of the LLaMA family, or a LLaVA model.

    Attributes:
        template: Prompt with one ``{}`` for the text.
    """

    template: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.template.count("{}") != 1:
            raise ValueError("LlamaTextConfig.template must contain {} once, where the text goes")

    @classmethod
    def hunyuan_video(cls, path: str, *, dtype: WeightDtype = "bfloat16") -> Self:
        """First text encoder of HunyuanVideo's diffusers folder ``path``."""
        return cls(
            model=str(Path(path) / "text_encoder"),
            tokenizer=str(Path(path) / "tokenizer"),
            template=HUNYUAN_VIDEO_TEMPLATE,
            crop_start=HUNYUAN_VIDEO_CROP,
            max_tokens=256,
            skip_layers=2,
            dtype=dtype,
        )


class LlamaTextExtractor(DecoderExtractor):
    """Hidden states of a LLaMA-family model that reads the text inside a template.

    The layers that are skipped are not loaded.
    """

    config_class = LlamaTextConfig
    config: LlamaTextConfig

    def __init__(self, config: LlamaTextConfig) -> None:
        """Load the model; nothing is downloaded.

        Raises:
            ValueError: a directory is missing, holds another model, damaged weights, or too few layers.
        """
        self.config = config
        # A LLaVA directory holds the language model that HunyuanVideo uses; its picture tower is dropped.
        classes = {"llama": "LlamaModel", "llava": "LlavaModel"}
        super().__init__(load_decoder(config, name="llama", classes=classes))

    def extract(self, raw: Sequence[str]) -> TextFeatures:
        """States ``(B, S, D)`` and mask ``(B, S)`` of ``B`` texts; longer texts are cut with a warning.

        Raises:
            ValueError: ``raw`` is a bare string or has no text, or the template is shorter than ``crop_start``.
        """
        # Not str.format: a text may contain braces.
        before, after = self.config.template.split("{}")
        return self._states([before + text + after for text in check_texts(raw)])


def load_decoder(config: DecoderConfig, *, name: str, classes: dict[str, str]) -> LanguageModel:
    """A decoder whose ``last_hidden_state`` is the hidden state in front of the last ``skip_layers`` layers.

    Raises:
        ValueError: a directory is missing, holds another model, damaged weights, or too few layers.
    """
    language = LanguageModel.load(config, name=name, classes=classes, adjust=_leave_out(name, config.skip_layers))
    # Models that also see pictures hold the decoder inside.
    language.model = getattr(language.model, "language_model", language.model)
    if config.skip_layers:
        language.model.norm = nn.Identity()
    return language


def _leave_out(name: str, skip_layers: int) -> Callable[[Any], None]:
    def shorten(settings: Any) -> None:
        text = settings.get_text_config()
        if text.num_hidden_layers <= skip_layers:
            raise ValueError(
                f"skip_layers = {skip_layers} leaves none of the {text.num_hidden_layers} layers of the {name} model"
            )
        text.num_hidden_layers -= skip_layers
        # Some families list the kind of attention of each layer.
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[: text.num_hidden_layers]

    return shorten
