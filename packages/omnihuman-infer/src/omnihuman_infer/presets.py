"""Names of the shipped models, and where their directories are. Imports nothing heavy."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

from omnihuman_infer.request import RequestError

SHIPPED = ("tiny",)
INDEX = "model.toml"
# Bytes of JSON at the head of a file; the limit of safetensors itself.
MAX_HEADER = 100_000_000


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
    for path in sorted(directory.glob("*/*.safetensors")):
        check_whole(path)
    return directory


def check_whole(path: Path) -> None:
    """Compare a safetensors file's length with what its header announces, without loading torch.

    The layout: eight bytes with the length of the header, the header in JSON, the tensors at the offsets it gives.

    Raises:
        RequestError: the file is cut short or is something else.
    """
    size = path.stat().st_size
    announced = None
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        # Anything else than safetensors announces any length, and would be read and parsed up to there.
        if length <= min(MAX_HEADER, size):
            try:
                header = json.loads(file.read(length))
                entries = [entry for name, entry in header.items() if name != "__metadata__"]
                announced = 8 + length + max((entry["data_offsets"][1] for entry in entries), default=0)
            except (ValueError, AttributeError, LookupError, TypeError, RecursionError):
                announced = None
    if announced != size:
        raise RequestError(f"model: {path}: truncated or not a safetensors file; copy it again")
