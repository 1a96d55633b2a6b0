"""Weights from files to a file with a few tensors in memory at a time.

A safetensors file is a length (8 bytes, little endian), a JSON header with dtype, shape and place of each tensor, and
the tensors' bytes. Since shapes are known beforehand, the header is written first and each tensor to its place as it
comes.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from omnihuman_core.checkpoint import DTYPES, CheckpointError, create_part, read_layout, read_tensors
from omnihuman_core.contracts.state_dict import StateDictAdapter

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_stream(
    path: str | Path,
    like: Mapping[str, Tensor],
    tensors: Iterable[tuple[str, Tensor]],
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a safetensors file, whole or not at all, holding one tensor at a time.

    Args:
        path: Replaced if it exists.
        like: Shape and dtype of every tensor, on ``meta``.
        tensors: Each of them once, in any order.
        dtype: Dtype of the floating tensors in the file; None keeps those of ``like``.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape, or the file cannot be written.
    """
    path = Path(path)
    dtypes = {key: dtype if dtype and value.is_floating_point() else value.dtype for key, value in like.items()}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    places: dict[str, int] = {}
    end = 0
    for key, value in like.items():
        start, end = end, end + value.numel() * dtypes[key].itemsize
        places[key] = start
        header[key] = {"dtype": _NAMES[dtypes[key]], "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    # Data begin at a multiple of 8 bytes, so that a reader may map them.
    text += b" " * (-len(text) % 8)
    temporary: Path | None = None
    try:
        handle, temporary = create_part(path)
        with os.fdopen(handle, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            begin = file.tell()
            file.truncate(begin + end)
            for key, tensor in tensors:
                if key not in places or tensor.shape != like[key].shape:
                    raise CheckpointError(f"{path}: tensor {key!r} {tuple(tensor.shape)} comes twice or does not fit")
                file.seek(begin + places.pop(key))
                flat = tensor.detach().to("cpu", dtypes[key]).contiguous().reshape(-1)
                file.write(flat.view(torch.uint8).numpy().data)
        if places:
            raise CheckpointError(f"{path}: {len(places)} tensors never came, the first is {next(iter(places))}")
        os.replace(temporary, path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def adapted(
    adapter: StateDictAdapter, native: Mapping[str, Tensor], files: Sequence[Path]
) -> tuple[dict[str, Tensor], Callable[[], Iterator[tuple[str, Tensor]]]]:
    """Public files seen through a state-dict adapter, block by block.

    Args:
        adapter: Maps each block of the module by itself.
        native: Our state dict, on ``meta``.
        files: Safetensors files; together they hold each key once.

    Returns:
        ``like`` and ``tensors`` of :class:`~omnihuman_core.contracts.importer.ImportedComponent`: our names with the
        dtypes of the files, and a function that reads one block after the other.

    Raises:
        CheckpointError: a file cannot be read, or keys or shapes are not those of the module; no tensor is read.
    """
    where, layout = _layouts(files)
    groups = [(part, adapter.from_native(part)) for part in _blocks(native).values()]
    wanted = {key: value for _, public in groups for key, value in public.items()}
    label = str(files[0]) if len(files) == 1 else str(files[0].parent)
    for key, value in wanted.items():
        if key not in layout:
            lost = [name for name in wanted if name not in layout]
            raise CheckpointError(f"{label}: {len(lost)} weights are missing, the first is {lost[0]}")
        if layout[key].shape != value.shape:
            raise CheckpointError(
                f"{where[key]}: {key} has shape {tuple(layout[key].shape)}, this model wants {tuple(value.shape)}"
            )
    extra = [key for key in layout if key not in wanted]
    if extra:
        raise CheckpointError(f"{label}: {len(extra)} keys are not of this model, the first is {extra[0]}")
    like = {key: value.to(layout[next(iter(public))].dtype) for part, public in groups for key, value in part.items()}

    def read() -> Iterator[tuple[str, Tensor]]:
        for _, public in groups:
            by_file: dict[Path, list[str]] = defaultdict(list)
            for key in public:
                by_file[where[key]].append(key)
            # Opened again for each block: what is closed is no longer mapped into memory.
            state: dict[str, Tensor] = {}
            for file, keys in by_file.items():
                state |= read_tensors(file, keys)
            yield from adapter.to_native(state).items()

    return like, read


def stored(file: Path) -> tuple[dict[str, Tensor], Callable[[], Iterator[tuple[str, Tensor]]]]:
    """A weight file of ours, block by block; see :func:`adapted`."""
    like = read_layout(file)

    def read() -> Iterator[tuple[str, Tensor]]:
        for part in _blocks(like).values():
            yield from read_tensors(file, part).items()

    return like, read


def _layouts(files: Sequence[Path]) -> tuple[dict[str, Path], dict[str, Tensor]]:
    where: dict[str, Path] = {}
    layout: dict[str, Tensor] = {}
    for file in files:
        for key, value in read_layout(file).items():
            if key in layout:
                raise CheckpointError(f"{file}: key {key!r} is in {where[key].name} too")
            where[key], layout[key] = file, value
    return where, layout


def _blocks(native: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors by the block they belong to: ``double_blocks.7``, or the first part of the name."""
    blocks: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in native.items():
        first, _, rest = key.partition(".")
        number = rest.partition(".")[0]
        blocks[f"{first}.{number}" if number.isdigit() else first][key] = value
    return blocks
