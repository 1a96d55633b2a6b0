"""Describes the picture of a request that has no prompt, by a captioner plugin (paper section 3.2).

Captioners are known by one method, ``caption(picture)``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from omnihuman_core.plugins import plugin
from omnihuman_infer.loading import resolve_device
from omnihuman_infer.request import GenerateRequest, RequestError, is_url

LOCAL, SERVER = "captioner_local", "captioner_server"


def with_caption(request: GenerateRequest, picture: Image.Image | None) -> GenerateRequest:
    """The request with a prompt that describes its picture; as it is where it has a prompt, or no captioner.

    Args:
        request: One that was checked.
        picture: Its picture; None where it has none, and so a prompt.

    Raises:
        RequestError: the captioner cannot be loaded or reached, or gives no description; one line.
    """
    if request.captioner is None or request.prompt is not None:
        return request
    assert picture is not None, "a request without a picture has a prompt"
    try:
        # Held by nothing after this: captioner and backbone need not fit the memory together.
        prompt = _captioner(request).caption(_to_pixels(picture))
    except ValueError as error:
        raise RequestError(f"captioner: {' '.join(str(error).split())}") from None
    return dataclasses.replace(request, prompt=prompt)


def _captioner(request: GenerateRequest) -> Any:
    assert request.captioner is not None
    if is_url(request.captioner):
        made_by = plugin("feature_extractor", SERVER)
        base = made_by.config_class.base(request.captioner, request.captioner_model, key_variable=request.captioner_key)
        return made_by(base)
    made_by = plugin("feature_extractor", LOCAL)
    return made_by(made_by.config_class.base(request.captioner)).to(resolve_device(request.device or "auto"))


def _to_pixels(picture: Image.Image) -> Tensor:
    """``(3, H, W)`` in [-1, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1
