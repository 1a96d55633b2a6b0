"""Every distribution stands on its own: version, typing marker, texts, declared dependencies."""

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .members import MEMBERS, ROOT, Member

SEMVER = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)((a|b|rc)\d+)?")
FRAGMENT = re.compile(r"[a-z0-9-]+\.(added|changed|deprecated|removed|fixed|security)\.md")

each_member = pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)


def imports(tree: ast.Module) -> Iterator[str]:
    """Top-level names that a file imports, at any depth of nesting."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def declared(member: Member) -> set[str]:
    """Distributions that a member declares, extras included."""
    extras = member.project.get("optional-dependencies", {}).values()
    lines = [*member.project["dependencies"], *(line for extra in extras for line in extra)]
    return {canonicalize_name(Requirement(line).name) for line in lines}


def undeclared(source: Path, allowed: set[str]) -> dict[str, str]:
    """Imported names under ``source`` that no distribution in ``allowed`` provides, each with a file that does it."""
    # Editable installs are not listed by the modules that they provide.
    providers = {**packages_distributions(), **{member.module: [member.name] for member in MEMBERS}}
    faults = {}
    for path in source.rglob("*.py"):
        for name in imports(ast.parse(path.read_text())):
            distributions = {canonicalize_name(provider) for provider in providers.get(name, [])}
            if name not in sys.stdlib_module_names and name != source.name and not distributions & allowed:
                faults[name] = str(path)
    return faults


def test_workspace_has_the_five_packages_and_the_kernels():
    assert [member.name for member in MEMBERS] == [
        "omnihuman-conditions",
        "omnihuman-core",
        "omnihuman-infer",
        "omnihuman-train",
        "omnihuman-vae",
        "omnihuman-kernels",
    ]


@each_member
def test_version_is_semver_and_the_installed_one(member):
    about: dict[str, str] = {}
    exec((member.source / "__about__.py").read_text(), about)
    assert SEMVER.fullmatch(about["__version__"])
    assert version(member.name) == about["__version__"]


@each_member
def test_member_carries_its_marker_and_its_texts(member):
    assert (member.source / "py.typed").is_file()
    assert (member.folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert (member.folder / "README.md").read_text().startswith(f"# {member.name}\n")
    assert f"# Changelog of {member.name}\n" in (member.folder / "CHANGELOG.md").read_text()
    assert f"[{member.name}]" in (ROOT / "CHANGELOG.md").read_text()


@each_member
def test_change_fragments_are_named_by_kind_and_hold_text(member):
    for fragment in (member.folder / "changes").iterdir():
        assert FRAGMENT.fullmatch(fragment.name), fragment
        assert fragment.read_text().strip(), fragment


@each_member
def test_python_floor_is_the_same_everywhere(member):
    assert member.project["requires-python"] == ">=3.11"


@each_member
def test_every_import_is_declared(member):
    assert undeclared(member.source, declared(member)) == {}


def test_an_undeclared_import_is_found(tmp_path):
    (tmp_path / "planted.py").write_text("import json\n\ndef f():\n    import scipy.linalg\n")
    assert undeclared(tmp_path, {"torch"}) == {"scipy": str(tmp_path / "planted.py")}
    assert undeclared(tmp_path, {"scipy"}) == {}
