"""A frozen language model with its tokenizer, and the checks that every text extractor shares."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from omnihuman_conditions.pretrained import WeightDtype, load_pretrained, load_processor

EXTRA = "text"


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
        *,
        name: str,
        model: str,
        tokenizer: str,
        classes: Mapping[str, str],
        dtype: WeightDtype,
        adjust: Callable[[Any], None] | None = None,
        optional: Sequence[str] = (),
    ) -> LanguageModel:
        """Read model and tokenizer; arguments as of :func:`load_pretrained`.

        Raises:
            ValueError: a directory is missing, damaged, or holds something else.
        """
        loaded = load_pretrained(model, name, classes, extra=EXTRA, dtype=dtype, adjust=adjust, optional=optional)
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
