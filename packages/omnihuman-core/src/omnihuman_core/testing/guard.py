"""Import purity: importing a package must be cheap and touch no accelerator."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

HEAVY = ("triton", "flash_attn", "transformers", "diffusers", "av", "cv2")

_PROBE = """
import importlib, sys
import torch
before = set(sys.modules)
names, heavy = sys.argv[1].split(","), sys.argv[2].split(",")
for name in names:
    importlib.import_module(name)
pulled = [name for name in heavy if name in sys.modules and name not in before]
if torch.cuda.is_initialized():
    pulled.append("an initialised CUDA context")
print(", ".join(pulled))
"""


def assert_import_pure(modules: Sequence[str], heavy: Sequence[str] = HEAVY) -> None:
    """Import modules in a fresh interpreter and check what came along.

    Args:
        modules: Modules to import, in one interpreter.
        heavy: Top-level modules that must not come along; what torch itself pulls does not count.

    Raises:
        AssertionError: a heavy module or a CUDA context came along, or an import failed.
    """
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, ",".join(modules), ",".join(heavy)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"importing {', '.join(modules)} failed: {done.stderr.strip().splitlines()[-1]}"
    pulled = done.stdout.strip()
    assert not pulled, f"importing {', '.join(modules)} pulls {pulled}"
