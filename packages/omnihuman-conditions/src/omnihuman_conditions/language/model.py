"""A frozen language model with its tokenizer, and what every text extractor made of one shares."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from omnihuman_conditions.pretrained import WeightDtype, check_dtype, load_pretrained, load_processor

EXTRA = "text"

# A tokenizer keeps the padding and truncation of its last call: threads would read each other's.
_TURN = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """Where a frozen language model comes from, and how much it reads.

    Attributes:
        model: Local directory of the model in the transformers layout, with safetensors weights.
        tokenizer: Local directory of its tokenizer.
        max_tokens: Tokens ``S`` of a text; every result has this many, masked. Longer texts are cut with a warning.
        dtype: Precision of the weights and of the states.
    """

    model: str
    tokenizer: str
    max_tokens: int
    dtype: WeightDtype

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.max_tokens < 1:
            raise ValueError(f"{name}.max_tokens must be at least 1, got {self.max_tokens}")
        check_dtype(f"{name}.dtype", self.dtype)


def check_texts(raw: Sequence[str]) -> list[str]:
    """The texts as a list.

    Raises:
        ValueError: ``raw`` is a bare string, empty, or holds something else than strings.
    """
    if isinstance(raw, str) or not raw or not all(isinstance(text, str) for text in raw):
        raise ValueError("texts must be a list of at least one string")
    return list(raw)


class LanguageModel:
    """Token ids in, output of a transformers model out.

    Attributes:
        tokenizer: The tokenizer; it pads on the right.
        model: The frozen model.
    """

    def __init__(self, tokenizer: Any, model: Any, *, name: str) -> None:
        """Keep both; use :meth:`load` to read them from directories."""
        self.tokenizer = tokenizer
        self.model = model
        self._name = name

    @classmethod
    def load(
        cls,
        config: LanguageConfig,
        *,
        name: str,
        classes: Mapping[str, str],
        adjust: Callable[[Any], None] | None = None,
    ) -> LanguageModel:
        """Read model and tokenizer; nothing is downloaded. ``classes`` and ``adjust`` as of :func:`load_pretrained`.

        Raises:
            ValueError: a directory is missing, damaged, or holds something else.
        """
        model, tokenizer = config.model, config.tokenizer
        loaded = load_pretrained(model, name, classes, extra=EXTRA, dtype=config.dtype, adjust=adjust)
        # Templates are cropped at the start, so padding has to be at the end, whatever the directory says.
        words = load_processor(tokenizer, f"{name} tokenizer", "AutoTokenizer", extra=EXTRA, padding_side="right")
        if words.pad_token is None:
            raise ValueError(f"{name} tokenizer in {tokenizer} has no padding token; set pad_token in its config")
        size = loaded.get_input_embeddings().num_embeddings
        if len(words) > size:
            raise ValueError(
                f"{name} tokenizer in {tokenizer} has {len(words)} tokens, the model in {model} knows {size}"
            )
        return cls(words, loaded, name=name)

    def to(self, device: str | torch.device) -> None:
        """Move the model."""
        self.model.to(device)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        device: torch.device = next(iter(self.model.parameters())).device
        return device

    def tokenize(self, texts: list[str], *, max_tokens: int, special_tokens: bool = True) -> tuple[Tensor, Tensor]:
        """Ids and mask ``(B, max_tokens)`` int64, padded on the right; longer texts are cut with a warning."""
        with _TURN:
            encoded = self.tokenizer(
                texts,
                padding="max_length",
                max_length=max_tokens,
                truncation=True,
                add_special_tokens=special_tokens,
                return_tensors="pt",
            )
            full = [text for text, row in zip(texts, encoded.attention_mask, strict=True) if row.all()]
            lengths = [
                len(self.tokenizer(text, add_special_tokens=special_tokens, verbose=False).input_ids) for text in full
            ]
        if lengths and max(lengths) > max_tokens:
            warnings.warn(
                f"text has {max(lengths)} {self._name} tokens, only the first {max_tokens} are used", stacklevel=3
            )
        return encoded.input_ids.to(self.device), encoded.attention_mask.to(self.device)


def crop(states: Tensor, mask: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """Drop the first ``start`` tokens, which belong to a template; the mask becomes bool.

    Raises:
        ValueError: a text has no token left.
    """
    kept = mask[:, start:].bool()
    if not kept.any(dim=1).all():
        raise ValueError(
            f"crop_start = {start} leaves no token of a text; it must be the length of the template's start"
        )
    return states[:, start:], kept


class LanguageExtractor:
    """An extractor made of one language model."""

    def __init__(self, language: LanguageModel) -> None:
        self._language = language

    def to(self, device: str | torch.device) -> Self:
        """Run on ``device`` from now on."""
        self._language.to(device)
        return self
