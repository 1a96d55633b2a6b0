"""Describes a picture by asking a server with the OpenAI chat interface (vLLM, llama.cpp, Ollama, ...)."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Self
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from torch import Tensor

from omnihuman_conditions.captioner import INSTRUCTION, CaptionerError, tidy, to_image

MAX_ANSWER_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ServerCaptionerConfig:
    """Settings of a :class:`ServerCaptioner`.

    Attributes:
        url: Base of the interface, such as ``http://127.0.0.1:8000/v1``.
        model: Name of a model on the server that reads pictures.
        key_variable: Environment variable that holds the key, or None for a server without one. The key itself never
            stands in a configuration.
        instruction: What the model is asked.
        max_tokens: Longest answer.
        max_side: Larger pictures are scaled down to this many pixels.
        timeout_seconds: Longest time without a sign of the server.
    """

    url: str
    model: str
    key_variable: str | None
    instruction: str
    max_tokens: int
    max_side: int
    timeout_seconds: float

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"ServerCaptionerConfig.url must look like http://host:port/v1, got {self.url!r}")
        if parts.username or parts.password:
            raise ValueError("ServerCaptionerConfig.url must not hold a password; name a key_variable instead")
        if not self.model:
            raise ValueError("ServerCaptionerConfig.model must name a model of the server")
        for name in ("max_tokens", "max_side", "timeout_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"ServerCaptionerConfig.{name} must be positive, got {getattr(self, name)}")

    @classmethod
    def base(cls, url: str, model: str, *, key_variable: str | None = None) -> Self:
        """Answers of up to 120 tokens on pictures of up to 768 pixels, within a minute."""
        return cls(
            url=url,
            model=model,
            key_variable=key_variable,
            instruction=INSTRUCTION,
            max_tokens=120,
            max_side=768,
            timeout_seconds=60.0,
        )


class ServerCaptioner:
    """Asks one question about one picture. The picture leaves this machine for the configured server, and no other."""

    config_class = ServerCaptionerConfig

    def __init__(self, config: ServerCaptionerConfig) -> None:
        """Keep the settings; the server is asked when a picture comes."""
        self.config = config

    def caption(self, picture: Tensor) -> str:
        """Prompt for a picture ``(3, H, W)`` in [-1, 1].

        Raises:
            CaptionerError: the server cannot be reached, refuses, or gives no description. One line.
        """
        config = self.config
        file = io.BytesIO()
        to_image(picture, max_side=config.max_side).save(file, format="JPEG", quality=90)
        data = base64.b64encode(file.getvalue()).decode("ascii")
        content = [
            {"type": "text", "text": config.instruction},
            {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}},
        ]
        question = {
            "model": config.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": config.max_tokens,
            "temperature": 0,
        }
        return tidy(_text(self._post(question), config.url))

    def extract(self, raw: Tensor) -> str:
        """Same as :meth:`caption`."""
        return self.caption(raw)

    def _post(self, question: Mapping[str, Any]) -> bytes:
        config = self.config
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if config.key_variable is not None:
            key = os.environ.get(config.key_variable, "")
            if not key:
                raise CaptionerError(
                    f"captioner: set the environment variable {config.key_variable} to the server's key"
                )
            headers["Authorization"] = f"Bearer {key}"
        request = Request(
            config.url.rstrip("/") + "/chat/completions", data=json.dumps(question).encode(), headers=headers
        )
        try:
            with build_opener(_NoRedirect).open(request, timeout=config.timeout_seconds) as answer:
                body: bytes = answer.read(MAX_ANSWER_BYTES + 1)
        except HTTPError as error:
            with error:
                reason = _reason(error.read(MAX_ANSWER_BYTES)) or error.reason
            raise CaptionerError(f"captioner at {config.url} answered {error.code}: {reason}") from None
        except TimeoutError as error:
            raise CaptionerError(f"captioner at {config.url} gave no answer in {config.timeout_seconds:g} s") from error
        except (URLError, HTTPException, OSError) as error:
            cause = getattr(error, "reason", error)
            if isinstance(cause, TimeoutError):
                cause = f"no answer in {config.timeout_seconds:g} s"
            reason = " ".join(str(cause).split()) or type(error).__name__
            raise CaptionerError(f"captioner at {config.url} cannot be reached: {reason}") from error
        if len(body) > MAX_ANSWER_BYTES:
            raise CaptionerError(f"captioner at {config.url} answered with more than {MAX_ANSWER_BYTES} bytes")
        return body


class _NoRedirect(HTTPRedirectHandler):
    """Neither the picture nor the key goes to another place than the one configured."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _text(body: bytes, url: str) -> str:
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise CaptionerError(f"captioner at {url} gave an answer that is no chat completion") from error
    if isinstance(content, list):
        content = " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    if not isinstance(content, str):
        raise CaptionerError(f"captioner at {url} answered without text")
    return content


def _reason(body: bytes) -> str:
    """The message in a server's error, in one short line."""
    try:
        error = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    error = error.get("error", error.get("message")) if isinstance(error, dict) else error
    error = error.get("message") if isinstance(error, dict) else error
    return " ".join(error.split())[:300] if isinstance(error, str) else ""
