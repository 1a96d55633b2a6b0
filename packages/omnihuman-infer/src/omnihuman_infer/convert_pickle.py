"""Pickled weights to safetensors, in a process of their own: ``python -m omnihuman_infer.convert_pickle IN OUT``.

The unpickler is torch's restricted one, which builds tensors and plain containers only; the process of its own keeps
what it may still do wrong away from the caller.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from omnihuman_infer.request import RequestError

# Where published files put the weights among other things.
_WRAPPERS = ("module", "state_dict", "model_state_dict", "model", "ema")


def unpickle(source: Path, target: Path) -> None:
    """Convert in a new process.

    Raises:
        RequestError: the file holds anything but tensors, or is damaged.
    """
    # Without -P the working directory, which may be the downloaded folder, is the first place to import from.
    command = [sys.executable, "-P", "-m", "omnihuman_infer.convert_pickle", str(source.resolve())]
    command.append(str(target.resolve()))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"the process ended with status {done.returncode}"]
        raise RequestError(f"{source}: cannot be converted: {lines[-1]}")


def main(source: str, target: str) -> int:
    """Read, unwrap, write; returns 0, or 1 after one line on stderr."""
    import torch

    from omnihuman_core.checkpoint import save_safetensors

    try:
        content = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:
        # Files written before torch 1.6 cannot be mapped.
        content = _load_unmapped(source)
    except Exception as error:
        return _refuse(error)
    try:
        save_safetensors(_tensors(content), target, {"format": "pt"})
    except ValueError as error:
        return _refuse(error)
    return 0


def _load_unmapped(source: str) -> Any:
    import torch

    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:
        sys.exit(_refuse(error))


def _refuse(error: Exception) -> int:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    print(reason, file=sys.stderr)
    return 1


def _tensors(content: Any) -> dict[str, Any]:
    import torch

    while isinstance(content, dict):
        if content and all(isinstance(value, torch.Tensor) for value in content.values()):
            return {str(key): value for key, value in content.items()}
        inner = [content[name] for name in _WRAPPERS if isinstance(content.get(name), dict)]
        if not inner:
            break
        content = inner[0]
    raise ValueError("holds no dictionary of tensors")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
