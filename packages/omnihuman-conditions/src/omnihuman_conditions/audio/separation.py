"""Optional removal of music and noise before the voice is heard by an extractor."""

from __future__ import annotations

import logging
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

_logger = logging.getLogger(__name__)


@runtime_checkable
class VocalSeparator(Protocol):
    """Takes the voice out of a mixture. Any source-separation model can be wrapped as one."""

    def __call__(self, waveform: Tensor, *, sample_rate: int) -> Tensor:
        """Voice ``(B, samples)`` of a mixture ``(B, samples)`` in [-1, 1]."""
        ...


class VoiceIsolation:
    """Applies a separator; where it fails, the raw voice is used and one notice says so.

    Attributes:
        separator: The separator, or None for none at all.
    """

    def __init__(self, separator: VocalSeparator | None) -> None:
        self.separator = separator
        self._noticed = False

    def __call__(self, waveform: Tensor, *, sample_rate: int) -> Tensor:
        """Voice ``(B, samples)``; the waveform itself where there is no separator or it fails."""
        if self.separator is None:
            return waveform
        try:
            voice: object = self.separator(waveform.clone(), sample_rate=sample_rate)
            if not isinstance(voice, Tensor) or voice.shape != waveform.shape:
                raise ValueError(f"it must return a tensor of shape {tuple(waveform.shape)}")
            if not torch.isfinite(voice).all():
                raise ValueError("it returned NaN or infinite samples")
        except Exception as error:
            # Whatever a third party's model raises, a voice with music is better than none.
            if not self._noticed:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                _logger.warning("vocal separation failed, using the raw voice: %s", reason)
                self._noticed = True
            return waveform
        return voice.to(waveform)
