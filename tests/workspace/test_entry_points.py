"""Every name that a distribution registers leads to an object of the right kind."""

import re
from dataclasses import is_dataclass
from importlib.metadata import EntryPoint, entry_points

import pytest

from .members import MEMBERS

GROUP = re.compile(
    r"omnihuman\.(video_vae|backbone|feature_extractor|condition_encoder|ops|objective|state_dict_adapter"
    r"|checkpoint_importer)\.v\d+"
)
# These groups hold functions; all others hold classes that are built from a config.
FUNCTIONS = {"omnihuman.ops.v1", "omnihuman.state_dict_adapter.v1", "omnihuman.checkpoint_importer.v1"}

DECLARED = [
    (group, name, value)
    for member in MEMBERS
    for group, plugins in member.project.get("entry-points", {}).items()
    for name, value in plugins.items()
]
SCRIPTS = [(name, value) for member in MEMBERS for name, value in member.project.get("scripts", {}).items()]


@pytest.mark.parametrize(("group", "name", "value"), DECLARED)
def test_plugin_is_installed_and_loads(group, name, value):
    assert GROUP.fullmatch(group)
    assert EntryPoint(name=name, group=group, value=value) in entry_points(group=group)
    plugin = EntryPoint(name=name, group=group, value=value).load()
    assert callable(plugin)
    if group not in FUNCTIONS:
        assert is_dataclass(plugin.config_class)
        assert plugin.config_class.__dataclass_params__.frozen


def test_no_two_packages_register_the_same_name():
    names = [(group, name) for group, name, _ in DECLARED]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("name", "value"), SCRIPTS)
def test_command_is_installed_and_loads(name, value):
    script = EntryPoint(name=name, group="console_scripts", value=value)
    assert script in entry_points(group="console_scripts")
    assert callable(script.load())
