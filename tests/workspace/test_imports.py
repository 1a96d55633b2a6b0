"""Importing a package is cheap: no kernel language, no model hub, no device."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .members import MEMBERS

HEAVY = ["flash_attn", "transformers", "diffusers", "triton", "scipy"]

# torch itself may pull in one of these, so what counts is what our import adds.
PROBE = """
import importlib, json, pkgutil, sys
import torch
before = set(sys.modules)

def added():
    return sorted({name.partition(".")[0] for name in set(sys.modules) - before})

package = importlib.import_module(sys.argv[1])
top = added()
# The modules of the kernels are written in Triton; theirs is the only package that may need it, below its top level.
if package.__name__ != "omnihuman_kernels":
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
print(json.dumps({"top": top, "all": added(), "cuda": torch.cuda.is_initialized()}))
"""


def probe(module: str, folder: Path | None = None) -> dict:
    run = subprocess.run([sys.executable, "-c", PROBE, module], cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("module", [member.module for member in MEMBERS])
def test_importing_brings_in_nothing_heavy(module):
    found = probe(module)
    assert not set(found["top"]) & {*HEAVY, "av", "cv2"}
    assert not set(found["all"]) & set(HEAVY)
    assert not found["cuda"]


def test_the_probe_sees_a_heavy_import(tmp_path):
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / "__init__.py").touch()
    (tmp_path / "planted" / "deep.py").write_text("import scipy\n")
    found = probe("planted", folder=tmp_path)
    assert "scipy" not in found["top"]
    assert "scipy" in found["all"]
