"""Names of the shipped models, and where their directories are. Imports nothing heavy."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from omnihuman_infer.request import RequestError

SHIPPED = ("tiny",)
INDEX = "model.toml"


def model_directory(model: str) -> Path:
    """Directory of a shipped model, or ``model`` itself where it is a directory.

    Raises:
        RequestError: neither a shipped model nor a model directory.
    """
    if model in SHIPPED:
        directory = Path(str(files("omnihuman_infer"))) / "pretrained" / model
        if not (directory / INDEX).is_file():
            raise RequestError(f"model: this installation lacks the shipped model {model!r}; reinstall omnihuman-infer")
        return directory
    directory = Path(model)
    if not directory.exists():
        raise RequestError(
            f"model: {model!r} is unknown; give one of the shipped models ({', '.join(SHIPPED)}) or a model directory"
        )
    if not directory.is_dir():
        raise RequestError(f"model: {model} is a file; give the directory that holds {INDEX}")
    if not (directory / INDEX).is_file():
        raise RequestError(f"model: {model} holds no {INDEX}; give a model directory")
    return directory
