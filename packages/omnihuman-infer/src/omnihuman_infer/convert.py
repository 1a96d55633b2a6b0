"""Downloaded checkpoints to a model directory: what ``omnihuman-infer convert`` does."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

from omnihuman_core.importing import PICKLES, read_json, read_public, write_components
from omnihuman_core.model_dir import INDEX, ModelIndex
from omnihuman_infer.convert_pickle import unpickle
from omnihuman_infer.request import RequestError

Precision = Literal["float32", "bfloat16", "float16"]

# Names of pickled weights, and what their safetensors are called; diffusers and transformers agree but for the first.
_RENAMED = {"pytorch_model": "model"}
_INDEX = ".index.json"


def convert(
    source: Path,
    out: Path,
    *,
    only: Sequence[str] = (),
    dtype: Precision | None = None,
    trust_pickle: bool = False,
) -> ModelIndex:
    """Write what ``source`` holds to a model directory, or add it to one; everything or nothing.

    Args:
        source: A published folder, a whole pipeline, or one weight file.
        out: Model directory.
        only: Components to take; empty for all.
        dtype: Precision of the weights that we write; None keeps theirs.
        trust_pickle: Read pickled weights, in a process of their own.

    Raises:
        RequestError: one line that names the file and the fix.
    """
    if (source / INDEX).is_file():
        raise RequestError(
            f"convert: {source} is a model directory already; give it to omnihuman-infer generate --model as it is"
        )
    try:
        with _safe(source, out, trust_pickle) as readable:
            components = read_public(readable, only=only)
            precision = None if dtype is None else getattr(torch, dtype)
            return write_components(out, components, name=_name(source), dtype=precision)
    except ValueError as error:
        raise RequestError(f"convert: {' '.join(str(error).split())}") from None


def _name(source: Path) -> str:
    """Name of a model after its file, less the suffix, or its folder, whose name may have dots."""
    # Links are not followed: a cache of downloads links to files that are named by hashes.
    named = Path(os.path.abspath(source))
    return named.stem if named.is_file() else named.name


@contextmanager
def _safe(source: Path, out: Path, trust_pickle: bool) -> Iterator[Path]:
    """``source`` without pickles: as it is, or a copy by links in which they are safetensors."""
    pickles = _pickles(source)
    if not pickles:
        yield source
        return
    if not trust_pickle:
        raise RequestError(
            f"{pickles[0]} is a pickle, a format that can carry code; look for safetensors, or add --trust-pickle if "
            "you trust who made it"
        )
    # Beside the target, where there is room for files of this size.
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".omnihuman-", suffix=".unpickled", dir=out.parent))
    except OSError as error:
        raise RequestError(f"{out}: cannot be written ({error.strerror})") from None
    try:
        if source.is_file():
            readable = folder / f"{source.stem}.safetensors"
            unpickle(source, readable)
        else:
            readable = folder / source.name
            _mirror(source, readable)
        yield readable
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _pickles(source: Path) -> list[Path]:
    """Pickled weights of a file, or of the folders of a pipeline that have no safetensors."""
    if not source.is_dir():
        return [source] if source.suffix in PICKLES else []
    found = []
    for folder in (source, *sorted(path for path in source.iterdir() if path.is_dir())):
        files = [path for path in sorted(folder.iterdir()) if path.is_file()]
        if not any(path.suffix == ".safetensors" for path in files):
            found += [path for path in files if path.suffix in PICKLES and path.stem != "training_args"]
    return found


def _mirror(source: Path, target: Path) -> None:
    """Links to every file of a folder and its subfolders, but pickles as safetensors and their indexes rewritten."""
    pickles = set(_pickles(source))
    for folder in (source, *(path for path in source.iterdir() if path.is_dir())):
        new = target / folder.relative_to(source)
        new.mkdir(parents=True, exist_ok=True)
        for file in sorted(path for path in folder.iterdir() if path.is_file()):
            if file in pickles:
                unpickle(file, new / _safe_name(file.name))
            elif file.name.endswith(f".bin{_INDEX}"):
                _rewrite_index(file, new / (_safe_name(file.name.removesuffix(_INDEX)) + _INDEX))
            else:
                os.symlink(file.resolve(), new / file.name)


def _rewrite_index(file: Path, target: Path) -> None:
    index = read_json(file)
    names = index.get("weight_map")
    if not isinstance(names, dict):
        raise RequestError(f"{file}: weight_map must map tensor names to files")
    renamed = {key: _safe_name(str(name)) for key, name in names.items()}
    # transformers wants to find metadata, whatever they are.
    target.write_text(json.dumps({"metadata": {}, **index, "weight_map": renamed}))


def _safe_name(name: str) -> str:
    stem, _, _ = name.rpartition(".")
    for old, new in _RENAMED.items():
        if stem == old or stem.startswith(f"{old}-"):
            stem = new + stem.removeprefix(old)
    return f"{stem}.safetensors"
