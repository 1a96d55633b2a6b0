"""What a directory holds, and how this machine would run it: what ``omnihuman-infer doctor`` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omnihuman_core.checkpoint import read_layout
from omnihuman_core.config import from_table, read_toml
from omnihuman_core.importing import read_public
from omnihuman_core.model_dir import COMPONENTS, CONFIG, INDEX, REQUIRED, WEIGHTS, ComponentEntry, read_index
from omnihuman_core.ops import choose_attention
from omnihuman_core.ops.attention_backends import attention_backend, backend_names, describe_target, why_not
from omnihuman_core.plugins import installed, plugin, resolve_ops
from omnihuman_infer.loading import resolve_device

PACKAGES = (
    "omnihuman-core",
    "omnihuman-vae",
    "omnihuman-conditions",
    "omnihuman-infer",
    "omnihuman-kernels",
    "torch",
    "safetensors",
    "transformers",
    "diffusers",
    "triton",
)

# What a model without one of the optional pairs cannot do.
_ABSENT = {
    "text": "takes no prompt",
    "audio": "takes no sound",
    "pose": "takes no keypoints",
}


@dataclass(frozen=True, kw_only=True)
class Report:
    """Result of an examination.

    Attributes:
        text: Lines for a reader.
        faults: What keeps the directory from being used, one line each.
    """

    text: str
    faults: tuple[str, ...]


def examine(directory: Path | None) -> Report:
    """Examine a model directory or a published one, and this machine; no weight is read and no GPU is needed.

    Args:
        directory: What to look at; None for the machine alone.
    """
    faults: list[str] = []
    lines: list[str] = []
    size = 0
    if directory is not None:
        found, size = _directory(directory, faults)
        lines += [*found, ""]
    lines += ["packages", *(f"  {name:22s} {_version(name)}" for name in PACKAGES), ""]
    lines += ["machine", *(f"  {line}" for line in _machine(size)), ""]
    lines += ["ops", *(f"  {line}" for line in _ops()), ""]
    lines += ["attention", *(f"  {line}" for line in _attention(faults))]
    if faults:
        lines += ["", "faults", *(f"  {fault}" for fault in faults)]
    return Report(text="\n".join(lines), faults=tuple(faults))


def _directory(directory: Path, faults: list[str]) -> tuple[list[str], int]:
    """Lines on a directory, and the number of values in its weights."""
    if not (directory / INDEX).is_file():
        try:
            parts = read_public(directory)
        except ValueError as error:
            faults.append(_one_line(error))
            return [f"{directory}: no model directory"], 0
        lines = [f"{directory}: published weights; omnihuman-infer convert makes a model directory of them"]
        lines += [f"  {part.component:16s} {part.plugin:14s} {_weights(part.like)}" for part in parts]
        return lines, sum(value.numel() for part in parts for value in part.like.values())
    try:
        index = read_index(directory)
    except ValueError as error:
        faults.append(_one_line(error))
        return [f"{directory}: a model directory that cannot be read"], 0
    lines = [f"{index.name} {index.version}  ({directory})"]
    count = 0
    for name, kind in COMPONENTS.items():
        entry = index.components.get(name)
        if entry is None:
            lines.append(f"  {name:16s} missing{_consequence(name)}")
            if name in REQUIRED:
                faults.append(f"{directory}: {name} is missing; add one with omnihuman-infer convert")
            continue
        try:
            layout = _component(directory / name, kind, entry)
        except ValueError as error:
            faults.append(_one_line(error))
            lines.append(f"  {name:16s} {entry.plugin:14s} broken")
            continue
        count += sum(value.numel() for value in layout.values())
        now = installed(kind)[entry.plugin].dist
        changed = f", now {now.version}" if now is not None and now.version != entry.package_version else ""
        lines.append(
            f"  {name:16s} {entry.plugin:14s} {_weights(layout)}, "
            f"written by {entry.package} {entry.package_version}{changed}"
        )
    return lines, count


def _component(folder: Path, kind: str, entry: ComponentEntry) -> dict[str, Tensor]:
    """Check a component's config and the header of its weights; returns the weights' layout.

    Raises:
        ValueError: one line that names file and fault.
    """
    made_by: Any = plugin(kind, entry.plugin)
    try:
        config = from_table(made_by.config_class, read_toml(folder / CONFIG))
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from None
    layout: dict[str, Tensor] = {}
    # A public model that came with the component, too.
    for file in sorted(folder.rglob("*.safetensors")):
        layout |= {f"{file.parent.name}/{key}": value for key, value in read_layout(file).items()}
    if not issubclass(made_by, nn.Module):
        if any("./" in str(value) for value in vars(config).values()) and not layout:
            raise ValueError(f"{folder}: the weights of {entry.plugin!r} are missing; convert it again")
        return layout
    with torch.device("meta"):
        wanted = made_by(config).state_dict()
    found = read_layout(folder / WEIGHTS) if wanted else {}
    for key, value in wanted.items():
        if key not in found or found[key].shape != value.shape:
            shape = tuple(found[key].shape) if key in found else None
            raise ValueError(f"{folder / WEIGHTS}: {key} must be {tuple(value.shape)}, it is {shape or 'missing'}")
    return layout


def _weights(layout: Any) -> str:
    if not layout:
        return "no weights"
    sizes: Counter[torch.dtype] = Counter()
    for value in layout.values():
        sizes[value.dtype] += value.numel()
    dtype = str(sizes.most_common(1)[0][0]).removeprefix("torch.")
    return f"{sizes.total() / 1e6:.1f} M values in {dtype}"


def _consequence(name: str) -> str:
    return f": the model {_ABSENT[name.partition('_')[0]]}" if name.partition("_")[0] in _ABSENT else ""


def _machine(size: int) -> Iterator[str]:
    device, dtype = _default()
    gpus = list(_gpus())
    yield from gpus or ["no GPU is seen"]
    yield f"device {device}, precision {str(dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads"
    if size:
        yield f"weights at that precision: {size * dtype.itemsize / 1e9:.2f} GB, without what the work itself needs"


def _default() -> tuple[torch.device, torch.dtype]:
    """Device and precision of a generation that says nothing about them."""
    device = resolve_device("auto")
    return device, torch.bfloat16 if device.type == "cuda" else torch.float32


def _gpus() -> Iterator[str]:
    """Name and memory of each GPU: as the driver says, or torch where nvidia-ml-py is not installed."""
    try:
        pynvml = import_module("pynvml")
        pynvml.nvmlInit()
    except Exception:
        # Not installed, or no driver: torch knows whether there is something to use.
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            yield f"GPU {number}: {torch.cuda.get_device_name(number)}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        return
    try:
        for number in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(number)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            name = pynvml.nvmlDeviceGetName(handle)
            yield f"GPU {number}: {name}, {memory.free / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    finally:
        pynvml.nvmlShutdown()


def _ops() -> Iterator[str]:
    for name in sorted(installed("ops")):
        try:
            resolve_ops(name)
        except Exception as error:
            # A kernel package may fail at import in many ways; the report goes on.
            yield f"{name:8s} cannot be used: {_one_line(error)}"
        else:
            note = ", the default" if name == "eager" else "" if torch.cuda.is_available() else " with a CUDA device"
            yield f"{name:8s} usable{note}"


def _attention(faults: list[str]) -> Iterator[str]:
    """Which backends run on the default device, why the others do not, and what ``auto`` makes of them."""
    target = describe_target(*_default())
    for name in backend_names():
        reason = why_not(attention_backend(name), target)
        yield f"{name:14s} {'usable' if reason is None else reason}"
    try:
        choice = choose_attention("auto", target)
    except ValueError as error:
        faults.append(_one_line(error))
        yield "auto cannot choose"
    else:
        yield f"auto takes {choice.summary}"
        if choice.notice is not None:
            yield choice.notice


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
