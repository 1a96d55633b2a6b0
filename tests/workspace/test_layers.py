"""The import contracts hold, and each of them breaks when it is violated."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from .members import MEMBERS, ROOT

CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
CORE = ("activation", "checkpoint", "config", "contracts", "dropout", "flow", "importing", "mmdit", "model_dir", "ops")
CORE += ("cli", "plugins", "testing")

PLANTS = [
    ("floors", "omnihuman_core/flow", "import omnihuman_vae"),
    ("floors", "omnihuman_vae", "import omnihuman_conditions"),
    ("floors", "omnihuman_train", "import omnihuman_infer"),
    ("providers", "omnihuman_infer", "import omnihuman_vae"),
    ("providers", "omnihuman_train", "import omnihuman_kernels"),
    ("core", "omnihuman_core/contracts", "import omnihuman_core.flow"),
    ("core", "omnihuman_core/ops", "import omnihuman_core.mmdit"),
    ("core", "omnihuman_core/unplaced", ""),
    ("contracts-pure", "omnihuman_core/contracts", "import einops"),
    ("core-light", "omnihuman_core/plugins", "import triton"),
]


def lint(folder: Path) -> tuple[int, dict[str, bool]]:
    """Exit status, and for each contract whether it was kept."""
    run = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--config", ROOT / "pyproject.toml", "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PYTHONUTF8": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = run.stdout.splitlines()
    kept = {
        contract["id"]: True
        for contract in CONTRACTS
        if any(line.startswith(contract["name"]) and line.rstrip().endswith("KEPT") for line in lines)
    }
    return run.returncode, {contract["id"]: contract["id"] in kept for contract in CONTRACTS}


@pytest.fixture
def workspace(tmp_path):
    """Empty packages of the same names as ours."""
    for folder in (*(member.module for member in MEMBERS), *(f"omnihuman_core/{name}" for name in CORE)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    return tmp_path


def test_empty_packages_keep_every_contract(workspace):
    status, kept = lint(workspace)
    assert status == 0
    assert all(kept.values())


@pytest.mark.parametrize(("contract", "module", "line"), PLANTS)
def test_a_violation_breaks_its_contract(workspace, contract, module, line):
    (workspace / module).mkdir(exist_ok=True)
    (workspace / module / "__init__.py").write_text(line + "\n")
    status, kept = lint(workspace)
    assert status != 0
    assert not kept[contract]
