"""Loads public models from a local directory in the transformers layout, with errors that say what is wrong with it.

Nothing is downloaded, no code that comes with a directory is run, and weights are safetensors only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

WeightDtype = Literal["float32", "bfloat16", "float16"]
"""Precision that a frozen model is held in."""

WEIGHT_DTYPES: tuple[WeightDtype, ...] = ("float32", "bfloat16", "float16")


def check_dtype(name: str, value: str) -> None:
    """Refuse a weight dtype that is none of :data:`WEIGHT_DTYPES`.

    Raises:
        ValueError: names the field ``name``.
    """
    if value not in WEIGHT_DTYPES:
        raise ValueError(f"{name} must be one of {', '.join(WEIGHT_DTYPES)}, got {value!r}")


def load_pretrained(
    path: str | Path,
    name: str,
    classes: Mapping[str, str],
    *,
    extra: str,
    dtype: WeightDtype = "float32",
    adjust: Callable[[Any], None] | None = None,
    optional: Collection[str] = (),
) -> Any:
    """A frozen model in ``eval`` mode.

    Args:
        path: Directory with ``config.json`` and safetensors weights, whole or sharded.
        name: What the model is called in errors.
        classes: Name of the transformers class by the ``model_type`` of the directory.
        extra: Optional dependency of this package that brings transformers.
        dtype: Precision of the weights.
        adjust: Changes the configuration in place before the model is built, to leave out layers.
        optional: Weights that may be absent.

    Raises:
        ValueError: the directory is missing, holds another model, or incomplete or damaged weights. One line.
    """
    path = Path(path)
    kind = model_kind(path, name)
    if kind not in classes:
        raise ValueError(f"{name} directory holds a {kind!r} model, not {' or '.join(map(repr, classes))}: {path}")
    _check_weight_files(path, name)
    transformers = import_transformers(name, extra)
    model_class = getattr(transformers, classes[kind])
    with quiet_transformers(), one_line(f"{name} weights in {path} cannot be loaded"):
        config = model_class.config_class.from_pretrained(path, local_files_only=True)
        if adjust is not None:
            adjust(config)
        model, report = model_class.from_pretrained(
            path,
            config=config,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            # Reported below: the library's own error does not name the tensor.
            ignore_mismatched_sizes=True,
        )
    for key, found, wanted in sorted(report["mismatched_keys"]):
        raise ValueError(
            f"{name} weights in {path}: {key} has shape {tuple(found)}, config.json asks for {tuple(wanted)}"
        )
    missing = sorted(set(report["missing_keys"]) - set(optional))
    if missing:
        raise ValueError(f"{name} weights in {path} lack {len(missing)} tensors, the first is {missing[0]}")
    return model.eval().requires_grad_(False)


def load_processor(path: str | Path, name: str, auto_class: str, *, extra: str, **options: Any) -> Any:
    """The tokenizer or processor in a local directory.

    Args:
        path: Directory.
        name: What it is called in errors.
        auto_class: transformers' loader, such as ``"AutoTokenizer"``.
        extra: Optional dependency of this package that brings transformers.
        options: Handed to the loader.

    Raises:
        ValueError: the directory is missing, or holds no such thing. One line.
    """
    if not Path(path).is_dir():
        raise ValueError(f"{name} directory not found: {path}")
    transformers = import_transformers(name, extra)
    with quiet_transformers(), one_line(f"{name} in {path} cannot be loaded"):
        return getattr(transformers, auto_class).from_pretrained(
            path, local_files_only=True, trust_remote_code=False, **options
        )


def model_kind(path: Path, name: str) -> str:
    """``model_type`` of a directory.

    Raises:
        ValueError: no such directory, or no readable ``config.json`` in it.
    """
    if not path.is_dir():
        raise ValueError(f"{name} directory not found: {path}")
    kind = read_settings(path / "config.json").get("model_type")
    if kind is None:
        raise ValueError(f"{name} directory has no readable config.json: {path}")
    return str(kind)


def read_settings(file: Path) -> dict[str, Any]:
    """Content of a JSON settings file; empty where there is none, or none that can be read."""
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


def import_transformers(name: str, extra: str) -> Any:
    """The transformers package.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"{name} needs transformers: pip install 'omnihuman-conditions[{extra}]'") from error
    return transformers


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bar and no report on left-out layers while a model loads; settings are put back afterwards."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


@contextmanager
def one_line(message: str) -> Iterator[None]:
    """Turn whatever a library raises into a ``ValueError`` of one line: the message and the first line of the cause."""
    try:
        yield
    except Exception as error:
        # transformers and safetensors raise many kinds here, some of them several lines long.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{message}: {reason}") from error


def _check_weight_files(path: Path, name: str) -> None:
    if not list(path.glob("*.safetensors")):
        raise ValueError(f"{name} directory has no .safetensors weights: {path}; convert them first")
    index = path / "model.safetensors.index.json"
    if (path / "model.safetensors").exists() or not index.exists():
        return
    shards = read_settings(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f"{name} weight index is not readable: {index}")
    for shard in sorted(set(map(str, shards.values()))):
        if Path(shard).name != shard:
            raise ValueError(f"{name} weight index points outside its directory ({shard!r}): {index}")
        if not (path / shard).is_file():
            raise ValueError(f"{name} directory lacks the weight shard {shard}: {path}")
