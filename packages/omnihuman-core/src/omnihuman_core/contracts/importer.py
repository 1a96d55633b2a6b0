"""Contract of a checkpoint importer: published files in, components of a model directory out.

Registered under ``omnihuman.checkpoint_importer.v1`` as a function of one argument.

Invariants:

1. Where the source holds nothing that the importer knows, it returns an empty sequence and raises nothing.
2. Where it does, names, shapes and the files that exist are checked before the function returns: what is missing,
   damaged or of another size raises ``ValueError`` with one line that names the file.
3. No tensor is read before :attr:`ImportedComponent.tensors` is called, and then a few at a time where the component is
   large. Pickles are never opened, no code of the source is run, and nothing is downloaded.

Stability: 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


def _no_tensors() -> Iterator[tuple[str, Tensor]]:
    return iter(())


@dataclass(frozen=True, kw_only=True)
class ImportedComponent:
    """One component of a model directory, as read from published files.

    Attributes:
        component: Name of the component, such as ``backbone``.
        plugin: Name of the plugin that it is built by.
        config: Config of that plugin. A text that begins with ``./`` is a path inside the component's folder.
        like: Name, shape and dtype of every weight, as tensors on ``meta``; empty without weights of its own.
        tensors: Gives those weights, each once, in any order.
        files: Files to copy, by their path inside the component's folder.
        generation: How the published model is used: fields of
            :class:`~omnihuman_core.model_dir.GenerationSettings` that a new model takes from it.
    """

    component: str
    plugin: str
    config: Any
    like: Mapping[str, Tensor] = field(default_factory=dict)
    tensors: Callable[[], Iterator[tuple[str, Tensor]]] = _no_tensors
    files: Mapping[str, Path] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class CheckpointImporter(Protocol):
    """Reads one kind of published checkpoint."""

    def __call__(self, source: Path) -> Sequence[ImportedComponent]:
        """Components that ``source``, a local file or directory, holds.

        Raises:
            ValueError: the source is of this kind, but incomplete or damaged.
        """
        ...
