"""The example plugins: their own tests pass, and the model directories they write load by plugin name."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from omnihuman_core.testing.registration import write_distribution

ROOT = Path(__file__).parents[2]
EXAMPLES = {
    "bring_your_own_vae": ("vae", "haar"),
    "bring_your_own_backbone": ("backbone", "factorised"),
    "custom_condition": ("text_encoder", "moods"),
}


def run(arguments: list[str], site: Path) -> str:
    """Run Python with the example installed: sources and entry points on the path."""
    paths = [str(site), *(str(ROOT / "examples" / name / "src") for name in EXAMPLES)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def install(name: str, site: Path) -> None:
    """Write the metadata that an installer would write from the example's own pyproject.toml."""
    project = tomllib.loads((ROOT / "examples" / name / "pyproject.toml").read_text())["project"]
    groups = {group.split(".")[1]: entries for group, entries in project["entry-points"].items()}
    write_distribution(site, groups, name=project["name"], version=project["version"])


def test_their_own_tests_pass(tmp_path):
    folders = [f"examples/{name}" for name in EXAMPLES]
    report = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", *folders], tmp_path)
    assert "failed" not in report
    assert "skipped" not in report


LOAD = """
import sys
from omnihuman_core.model_dir import load_model
model = load_model(sys.argv[1])
print(model.index.components[sys.argv[2]].plugin, type(getattr(model, sys.argv[2])).__module__)
assert model.vae.latent_spec.channels == model.backbone.spec.latent_channels
"""


@pytest.mark.parametrize("name", EXAMPLES)
def test_their_model_directories_load(name, tmp_path):
    component, plugin = EXAMPLES[name]
    install(name, tmp_path / "site")
    run([f"examples/{name}/make_model_dir.py", str(tmp_path / "model")], tmp_path / "site")
    loaded = run(["-c", LOAD, str(tmp_path / "model"), component], tmp_path / "site").split()
    assert loaded[0] == plugin
    assert not loaded[1].startswith("omnihuman")
