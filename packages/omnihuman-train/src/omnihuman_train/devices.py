"""Whether a device can be used, asked before any work."""

from __future__ import annotations

import torch


def check_device(name: str, field: str) -> None:
    """Check that torch can compute on a device here.

    Args:
        name: Torch device.
        field: What names it, for the message: a field of a recipe or an option.

    Raises:
        ValueError: it cannot.
    """
    fix = f"{field} cpu" if field.startswith("--") else f"--set {field}=cpu"
    try:
        # A result that is read: the meta device has none.
        torch.zeros(1, device=name).item()
    # Torch raises AssertionError where it was built without the device, ImportError where that is a package of its own.
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ValueError(f"{field} {name!r} cannot be used here ({reason}); for the CPU give {fix}") from error
