"""Describes the picture of a request that has no prompt, by a captioner plugin (paper section 3.2).

Captioners are known by one method, ``caption(picture)``.
"""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from omnihuman_core.plugins import plugin
from omnihuman_infer.loading import resolve_device
from omnihuman_infer.request import GenerateRequest, RequestError, is_url

LOCAL, SERVER = "captioner_local", "captioner_server"


class HeldCaptioner:
    """Keeps the last local captioner between requests; it waits on the CPU, so that it takes nothing from the model.

    Whoever holds a model for many requests holds one of these beside it. Threads take turns.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._captioner: Any = None
        self._turn = threading.Lock()

    def __reduce__(self) -> tuple[type[HeldCaptioner], tuple[()]]:
        # A lock crosses no process border, and another process loads its own captioner.
        return HeldCaptioner, ()

    def caption(self, folder: Path, picture: Tensor, *, device: torch.device) -> str:
        """Prompt for a picture by the captioner in ``folder``, which is loaded where another one is held, or none.

        Args:
            folder: Directory of a local captioner.
            picture: ``(3, H, W)`` in [-1, 1].
            device: Where the captioner runs; it leaves it afterwards.

        Raises:
            ValueError: the captioner cannot be loaded, or gives no description.
        """
        with self._turn:
            if folder.resolve() != self._folder:
                # Let go of first: two need not fit the memory.
                self._folder = self._captioner = None
                self._captioner = _local(folder)
                self._folder = folder.resolve()
            try:
                prompt: str = self._captioner.to(device).caption(picture)
            finally:
                self._captioner.to(torch.device("cpu"))
            return prompt


def with_caption(
    request: GenerateRequest,
    picture: Image.Image | None,
    *,
    device: torch.device | None = None,
    held: HeldCaptioner | None = None,
) -> GenerateRequest:
    """The request with a prompt that describes its picture; as it is where it has a prompt, or no captioner.

    Args:
        request: One that was checked.
        picture: Its picture; None where it has none, and so a prompt.
        device: Where a local captioner runs: that of the model. None takes the request's.
        held: Keeps a local captioner for the next request; without one it is let go, so that captioner and model need
            not fit the memory together.

    Raises:
        RequestError: the captioner cannot be loaded or reached, or gives no description; one line.
    """
    if request.captioner is None or request.prompt is not None:
        return request
    assert picture is not None, "a request without a picture has a prompt"
    pixels = _to_pixels(picture)
    if device is None:
        device = resolve_device(request.device or "auto")
    try:
        if is_url(request.captioner):
            prompt = _server(request).caption(pixels)
        elif held is not None:
            prompt = held.caption(Path(request.captioner), pixels, device=device)
        else:
            prompt = _local(Path(request.captioner)).to(device).caption(pixels)
    except ValueError as error:
        raise RequestError(f"captioner: {' '.join(str(error).split())}") from None
    return dataclasses.replace(request, prompt=prompt)


def _server(request: GenerateRequest) -> Any:
    made_by = plugin("feature_extractor", SERVER)
    base = made_by.config_class.base(request.captioner, request.captioner_model, key_variable=request.captioner_key)
    return made_by(base)


def _local(folder: Path) -> Any:
    made_by = plugin("feature_extractor", LOCAL)
    return made_by(made_by.config_class.base(str(folder)))


def _to_pixels(picture: Image.Image) -> Tensor:
    """``(3, H, W)`` in [-1, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1
