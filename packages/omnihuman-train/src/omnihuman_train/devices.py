"""Whether a device can be used, asked before any work."""

from __future__ import annotations

import os

import torch


def check_device(name: str, field: str) -> None:
    """Check that torch can compute on a device here; of ``cuda``, on the GPU of this process's number.

    Args:
        name: Torch device.
        field: What names it, for the message: a field of a recipe or an option.

    Raises:
        ValueError: it cannot.
    """
    fix = f"{field} cpu" if field.startswith("--") else f"--set {field}=cpu"
    # As `join` takes it: the first touch opens a context, and GPU 0 would hold one of every process of a machine.
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if name == "cuda" else name
    try:
        # A result that is read: the meta device has none.
        torch.zeros(1, device=device).item()
    # Torch raises AssertionError where it was built without the device, ImportError where that is a package of its own.
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ValueError(f"{field} {name!r} cannot be used here ({reason}); for the CPU give {fix}") from error
