"""Weights in safetensors files: written whole or not at all, loaded with a report of the keys. No pickle anywhere."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Dtypes by their names in safetensors files."""


class CheckpointError(ValueError):
    """A weight file is missing, truncated, no safetensors file, or does not fit the module."""


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """A tensor whose shape differs between module and file."""

    key: str
    expected: tuple[int, ...]
    found: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class KeyReport:
    """Difference between the keys of a module and those of its files.

    Attributes:
        missing: Keys of the module that no file holds.
        unexpected: Keys of the files that the module does not have.
        mismatched: Keys on both sides with different shapes.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[Mismatch, ...]

    @property
    def exact(self) -> bool:
        """Whether module and files hold the same keys in the same shapes."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        parts = [
            f"{len(keys)} {name} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for name, keys in (("missing", self.missing), ("unexpected", self.unexpected))
            if keys
        ]
        parts += [
            f"{m.key} has shape {m.found} in the file, the module wants {m.expected}" for m in self.mismatched[:3]
        ]
        if len(self.mismatched) > 3:
            parts.append(f"{len(self.mismatched) - 3} more of other shapes")
        return "; ".join(parts) or "all keys match"


def create_part(path: Path, suffix: str = ".part") -> tuple[int, Path]:
    """Create an empty file in the folder of ``path``, to be filled and then moved to ``path``.

    Unlike those of :mod:`tempfile` it has the rights of any new file, which the kernel grants: to ask for the umask is
    to change it for every thread. Its name is short, so that there is one wherever there can be a ``path``.

    Args:
        path: The file that this one is to become.
        suffix: End of the name.

    Returns:
        A handle for writing, which the caller closes, and the path.

    Raises:
        OSError: the folder is missing or cannot be written to.
    """
    part = path.parent / f".omnihuman-{secrets.token_hex(8)}{suffix}"
    # Windows alone knows the flag, and alters line ends without it.
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    return os.open(part, flags, 0o666), part


def save_safetensors(
    tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to ``path``: through a temporary file beside it, so that a reader never sees half of it.

    Args:
        tensors: By key, on any device; views that share memory are written each on its own.
        path: Replaced if it exists.
        metadata: Strings for the header of the file.

    Raises:
        CheckpointError: the file cannot be written; a file that was there before is left as it was.
    """
    path = Path(path)
    seen: set[int] = set()
    flat: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        storage = value.untyped_storage()
        # safetensors refuses tensors that share memory, or that see only a part of theirs.
        if storage.data_ptr() in seen or storage.nbytes() != value.nbytes:
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        flat[key] = value
    temporary: Path | None = None
    try:
        handle, temporary = create_part(path)
        os.close(handle)
        rights = temporary.stat().st_mode
        save_file(flat, temporary, dict(metadata or {}))
        # safetensors puts a file of its own in the place, which from 0.8 on nobody else may read.
        temporary.chmod(rights)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written ({error})") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def load_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a file by key, on the CPU, backed by the file's memory mapping.

    Raises:
        CheckpointError: the file is missing, truncated or no safetensors file.
    """
    with _opened(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def read_layout(path: str | Path) -> dict[str, Tensor]:
    """Shapes and dtypes in the header of a file, as tensors on ``meta``; nothing else of it is read.

    Raises:
        CheckpointError: as :func:`load_safetensors`.
    """
    with _opened(path) as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
        unknown = {part.get_dtype() for part in slices.values()} - DTYPES.keys()
        if unknown:
            raise CheckpointError(f"{path}: dtype {sorted(unknown)[0]} is not supported")
        return {
            key: torch.empty(part.get_shape(), dtype=DTYPES[part.get_dtype()], device="meta")
            for key, part in slices.items()
        }


def read_tensors(path: str | Path, keys: Iterable[str]) -> dict[str, Tensor]:
    """Some tensors of a file, as :func:`load_safetensors` gives them.

    Raises:
        CheckpointError: as :func:`load_safetensors`.
    """
    with _opened(path) as file:
        return {key: file.get_tensor(key) for key in keys}


def read_metadata(path: str | Path) -> dict[str, str]:
    """Strings in the header of a file.

    Raises:
        CheckpointError: as :func:`load_safetensors`.
    """
    with _opened(path) as file:
        return dict(file.metadata() or {})


def load_state(
    module: nn.Module,
    paths: str | Path | Iterable[str | Path],
    strict: bool = True,
    dtype: torch.dtype | None = None,
) -> KeyReport:
    """Load a module from one file or several shards.

    All headers are compared with the module before any tensor is touched: a refused checkpoint leaves the module as it
    was. Tensors on ``meta`` are replaced shard by shard; others keep their device, and their dtype unless one is given.

    Args:
        module: May live on ``meta``.
        paths: Shards; together they hold each key once.
        strict: Raise unless keys and shapes are the same. Otherwise tensors that fit are loaded, the rest is left.
        dtype: Dtype of all floating tensors of the module afterwards; where None, tensors on ``meta`` take that of the
            files and others keep theirs.

    Returns:
        What did not match.

    Raises:
        CheckpointError: a file cannot be read, a key is in two shards, or (strict) something does not match.
    """
    shards = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    targets = module.state_dict(keep_vars=True)
    shapes = _shapes(shards)
    report = KeyReport(
        missing=tuple(key for key in targets if key not in shapes),
        unexpected=tuple(key for key in shapes if key not in targets),
        mismatched=tuple(
            Mismatch(key=key, expected=tuple(target.shape), found=shapes[key])
            for key, target in targets.items()
            if key in shapes and tuple(target.shape) != shapes[key]
        ),
    )
    if strict and not report.exact:
        raise CheckpointError(f"{', '.join(map(str, shards))}: does not fit {type(module).__name__}: {report}")
    skipped = {mismatch.key for mismatch in report.mismatched} | set(report.unexpected)
    for shard in shards:
        with _opened(shard) as file:
            state = {
                key: _cast(file.get_tensor(key), targets[key], dtype)
                for key in file.keys()  # noqa: SIM118
                if key not in skipped
            }
        module.load_state_dict(state, strict=False, assign=True)
    return report


def _cast(value: Tensor, target: Tensor, dtype: torch.dtype | None) -> Tensor:
    device = value.device if target.is_meta else target.device
    if not target.is_floating_point():
        return value.to(device, target.dtype)
    wanted = dtype or (value.dtype if target.is_meta else target.dtype)
    return value.to(device, wanted)


def _shapes(shards: list[Path]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for shard in shards:
        with _opened(shard) as file:
            for key in file.keys():  # noqa: SIM118
                if key in shapes:
                    raise CheckpointError(f"{shard}: key {key!r} is in an earlier shard too")
                shapes[key] = tuple(file.get_slice(key).get_shape())
    return shapes


def _opened(path: str | Path) -> Any:
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such weight file")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: truncated or not a safetensors file ({error})") from error
