"""Hidden states of LLaMA-family decoders under a prompt template, as HunyuanVideo takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from omnihuman_conditions.language.model import LanguageModel, check_texts, crop
from omnihuman_conditions.pretrained import WeightDtype, check_dtype
from omnihuman_core.contracts.encoder import TextFeatures

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
class LlamaTextConfig:
    """Settings of a :class:`LlamaTextExtractor`.

    Attributes:
        model: Local directory of a LLaMA or LLaVA model in the transformers layout, with safetensors weights.
        tokenizer: Local directory of its tokenizer.
        template: Prompt with one ``{}`` for the text.
        crop_start: Tokens of the template in front of the text, dropped from the result.
        max_tokens: Tokens ``S`` that are left; every result has this many, masked.
        skip_layers: Layers at the end that are left out; 0 takes the normed output of the last one.
        dtype: Precision of the weights and of the states.
    """

    model: str
    tokenizer: str
    template: str
    crop_start: int
    max_tokens: int
    skip_layers: int
    dtype: WeightDtype

    def __post_init__(self) -> None:
        if self.template.count("{}") != 1:
            raise ValueError("LlamaTextConfig.template must contain {} once, where the text goes")
        if self.max_tokens < 1 or self.crop_start < 0 or self.skip_layers < 0:
            raise ValueError(
                "LlamaTextConfig needs max_tokens >= 1, crop_start >= 0 and skip_layers >= 0, "
                f"got {self.max_tokens}, {self.crop_start} and {self.skip_layers}"
            )
        check_dtype("LlamaTextConfig.dtype", self.dtype)

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


class LlamaTextExtractor:
    """Hidden states of a LLaMA-family model that reads the text inside a template.

    The layers that are skipped are not loaded.
    """

    config_class = LlamaTextConfig

    def __init__(self, config: LlamaTextConfig) -> None:
        """Load the model; nothing is downloaded.

        Raises:
            ValueError: a directory is missing, holds another model, damaged weights, or too few layers.
        """
        self.config = config
        # A LLaVA directory holds the language model that HunyuanVideo uses; its picture tower is dropped.
        self._language = load_decoder(
            name="llama",
            model=config.model,
            tokenizer=config.tokenizer,
            classes={"llama": "LlamaModel", "llava": "LlavaModel"},
            skip_layers=config.skip_layers,
            dtype=config.dtype,
        )

    def to(self, device: str | torch.device) -> Self:
        """Run on ``device`` from now on."""
        self._language.to(device)
        return self

    @torch.no_grad()
    def extract(self, raw: Sequence[str]) -> TextFeatures:
        """States ``(B, S, D)`` and mask ``(B, S)`` of ``B`` texts; longer texts are cut with a warning.

        Raises:
            ValueError: ``raw`` is a bare string or has no text, or the template is shorter than ``crop_start``.
        """
        config = self.config
        # Not str.format: a text may contain braces.
        before, after = config.template.split("{}")
        texts = [before + text + after for text in check_texts(raw)]
        ids, mask = self._language.tokenize(texts, max_tokens=config.max_tokens + config.crop_start)
        states = self._language.model(input_ids=ids, attention_mask=mask).last_hidden_state
        values, kept = crop(states, mask, config.crop_start)
        return TextFeatures(values=values, mask=kept)


def load_decoder(
    *, name: str, model: str, tokenizer: str, classes: dict[str, str], skip_layers: int, dtype: WeightDtype
) -> LanguageModel:
    """A decoder whose ``last_hidden_state`` is the hidden state in front of the last ``skip_layers`` layers.

    Raises:
        ValueError: a directory is missing, holds another model, damaged weights, or too few layers.
    """
    language = LanguageModel.load(
        name=name,
        model=model,
        tokenizer=tokenizer,
        classes=classes,
        dtype=dtype,
        adjust=_leave_out(name, model, skip_layers),
    )
    # Models that also see pictures hold the decoder inside.
    language.model = getattr(language.model, "language_model", language.model)
    if skip_layers:
        language.model.norm = nn.Identity()
    return language


def _leave_out(name: str, path: str, skip_layers: int) -> Callable[[Any], None]:
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
