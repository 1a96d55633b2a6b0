"""Where a prompt comes from when the user gives none (paper section 3.2: text describes the picture and the event)."""

from __future__ import annotations

import logging
from typing import Protocol, runtime_checkable

from torch import Tensor

NEUTRAL_PROMPT = "A person is talking."

_logger = logging.getLogger(__name__)


@runtime_checkable
class Captioner(Protocol):
    """Describes a picture in one prompt."""

    def caption(self, picture: Tensor) -> str:
        """Prompt for a picture ``(3, H, W)`` in [-1, 1]; never empty."""
        ...


class NeutralCaptioner:
    """Stands in where no captioner is configured: one prompt for every picture, and one notice."""

    def __init__(self) -> None:
        self._noticed = False

    def caption(self, picture: Tensor) -> str:
        """:data:`NEUTRAL_PROMPT`, whatever the picture shows."""
        if not self._noticed:
            _logger.warning("no captioner is configured: using the prompt %r", NEUTRAL_PROMPT)
            self._noticed = True
        return NEUTRAL_PROMPT
