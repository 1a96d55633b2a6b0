"""The encoder half for text that needs none: states of a frozen language model go straight to the backbone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from omnihuman_core.contracts.conditioning import TextCondition
from omnihuman_core.contracts.extractor import TextFeatures


@dataclass(frozen=True, kw_only=True)
class TextStatesConfig:
    """Shapes of the states.

    Attributes:
        max_tokens: Tokens ``S`` of every text.
        token_dim: Width ``D_text`` of a token.
        pooled_dim: Width ``P`` of the pooled vector, or None without one.
    """

    max_tokens: int
    token_dim: int
    pooled_dim: int | None

    def __post_init__(self) -> None:
        for name in ("max_tokens", "token_dim", "pooled_dim"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"TextStatesConfig.{name} must be at least 1, got {value}")

    @classmethod
    def tiny(cls) -> Self:
        """For tests."""
        return cls(max_tokens=4, token_dim=8, pooled_dim=6)

    @classmethod
    def hunyuan_video(cls) -> Self:
        """LLaMA 8B states and CLIP-L's pooled vector."""
        return cls(max_tokens=256, token_dim=4096, pooled_dim=768)

    @classmethod
    def hunyuan_video_15(cls) -> Self:
        """Qwen2.5-VL 7B states, and behind them ByT5 states of quoted words."""
        return cls(max_tokens=1256, token_dim=3584, pooled_dim=None)

    @classmethod
    def wan(cls) -> Self:
        """UMT5-XXL states."""
        return cls(max_tokens=512, token_dim=4096, pooled_dim=None)


class TextStates(nn.Module):
    """Hands text states on as they are; "no text" is the stored encoding of the empty prompt.

    Nothing is trained. The empty prompt is stored once, from the extractor, and saved with the model:

    Example:
        >>> encoder = TextStates(TextStatesConfig.tiny())
        >>> states = TextFeatures(values=torch.ones(1, 4, 8), mask=torch.ones(1, 4).bool(), pooled=torch.ones(1, 6))
        >>> encoder.store_null(states)  # what the extractor makes of [""]
        >>> encoder.null(encoder.encode(states)).tokens.shape
        torch.Size([1, 4, 8])
    """

    config_class = TextStatesConfig
    presets: ClassVar[dict[str, Callable[[], TextStatesConfig]]] = {
        "tiny": TextStatesConfig.tiny,
        "hunyuan_video": TextStatesConfig.hunyuan_video,
        "hunyuan_video_15": TextStatesConfig.hunyuan_video_15,
        "wan": TextStatesConfig.wan,
    }

    null_tokens: Tensor
    null_mask: Tensor
    null_pooled: Tensor | None

    def __init__(self, config: TextStatesConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("null_tokens", torch.zeros(config.max_tokens, config.token_dim))
        self.register_buffer("null_mask", torch.zeros(config.max_tokens, dtype=torch.bool))
        pooled = None if config.pooled_dim is None else torch.zeros(config.pooled_dim)
        self.register_buffer("null_pooled", pooled)

    def store_null(self, empty: TextFeatures) -> None:
        """Keep the features of the empty prompt, one sample, as "no text".

        Raises:
            ValueError: the shapes differ from the config, or no token counts.
        """
        self._check(empty)
        if empty.values.shape[0] != 1 or not empty.mask.any():
            raise ValueError('the null must be the features of the one text [""], with at least one token that counts')
        with torch.no_grad():
            self.null_tokens.copy_(empty.values[0])
            self.null_mask.copy_(empty.mask[0])
            if self.null_pooled is not None and empty.pooled is not None:
                self.null_pooled.copy_(empty.pooled[0])

    def encode(self, features: TextFeatures) -> TextCondition:
        """The states as tokens ``(B, S, D_text)``, their mask, and the pooled vector.

        Raises:
            ValueError: the shapes differ from the config.
        """
        self._check(features)
        return TextCondition(tokens=features.values, mask=features.mask, pooled=features.pooled)

    def null(self, like: TextCondition) -> TextCondition:
        """The stored encoding of the empty prompt, once for each sample of ``like``.

        Raises:
            ValueError: none is stored, or ``like`` has other shapes than the config.
        """
        if not self.null_mask.any():
            raise ValueError('TextStates has no null yet: call store_null(extractor.extract([""])) and save the model')
        self._check(TextFeatures(values=like.tokens, mask=like.mask, pooled=like.pooled))
        pooled = None
        if self.null_pooled is not None and like.pooled is not None:
            pooled = self.null_pooled.to(like.pooled).expand_as(like.pooled)
        return TextCondition(
            tokens=self.null_tokens.to(like.tokens).expand_as(like.tokens),
            mask=self.null_mask.to(like.mask.device).expand_as(like.mask),
            pooled=pooled,
        )

    def forward(self, features: TextFeatures) -> TextCondition:
        """Same as :meth:`encode`."""
        return self.encode(features)

    def _check(self, features: TextFeatures) -> None:
        config = self.config
        values, mask, pooled = features.values, features.mask, features.pooled
        expected = (config.max_tokens, config.token_dim)
        if values.ndim != 3 or tuple(values.shape[1:]) != expected or mask.shape != values.shape[:2]:
            raise ValueError(
                f"text states must be (B, {expected[0]}, {expected[1]}) with a mask (B, {expected[0]}), "
                f"got {tuple(values.shape)} and {tuple(mask.shape)}"
            )
        found = None if pooled is None else pooled.shape[-1]
        if found != config.pooled_dim:
            raise ValueError(f"the pooled text vector must have width {config.pooled_dim}, got {found}")
