"""Picture and voice in, talking video out: inference of the open OmniHuman stack.

Example:
    >>> from omnihuman_infer import GenerateRequest, OmniHumanPipeline
    >>> pipeline = OmniHumanPipeline.from_pretrained("tiny")  # doctest: +SKIP
    >>> pipeline(GenerateRequest(image="me.png", audio="me.wav", out="me.mp4"))  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from omnihuman_infer.__about__ import __version__
from omnihuman_infer.fields import ModelError, RequestError
from omnihuman_infer.request import GenerateRequest

if TYPE_CHECKING:
    from omnihuman_infer.pipeline import GenerationResult, OmniHumanPipeline, generate

__all__ = [
    "GenerateRequest",
    "GenerationResult",
    "ModelError",
    "OmniHumanPipeline",
    "RequestError",
    "__version__",
    "generate",
]

_NEEDS_TORCH = ("GenerationResult", "OmniHumanPipeline", "generate")


def __getattr__(name: str) -> Any:
    # Torch is imported with the first name that needs it: checking a request must not wait for it.
    if name in _NEEDS_TORCH:
        from omnihuman_infer import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
