"""What every plugin owes its registry, and a way to register plugins for a test."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from omnihuman_core.config import from_table, to_toml
from omnihuman_core.plugins import group


def check_registrable(plugin: Any) -> None:
    """Check that a plugin can be rebuilt from its written configuration.

    Raises:
        AssertionError: ``config_class``, ``config`` or the constructor does not keep the rule.
    """
    made_by = type(plugin)
    config_class = getattr(made_by, "config_class", None)
    assert config_class is not None, f"{made_by.__name__} needs the class attribute config_class"
    assert isinstance(plugin.config, config_class), f"{made_by.__name__}.config must give its {config_class.__name__}"
    read = from_table(config_class, tomllib.loads(to_toml(plugin.config)))
    assert read == plugin.config, f"the configuration changes when it is written and read: {plugin.config} -> {read}"
    rebuilt = made_by(read)
    if isinstance(plugin, nn.Module):
        shapes, again = (
            {key: tuple(value.shape) for key, value in module.state_dict().items()} for module in (plugin, rebuilt)
        )
        assert shapes == again, f"{made_by.__name__}(config) must have the same weights each time"


def write_distribution(
    directory: Path, entries: Mapping[str, Mapping[str, str]], *, name: str = "omnihuman-fakes", version: str = "1.0.0"
) -> Path:
    """Write the metadata of an installed distribution, so that its plugins are found once ``directory`` is on the path.

    Args:
        directory: Made if needed; put it on ``sys.path`` (``monkeypatch.syspath_prepend``) or ``PYTHONPATH``.
        entries: ``"module:Class"`` by plugin name by kind of plugin, ``{"video_vae": {"fake": "..."}}``.
        name: Name of the distribution.
        version: Its version.

    Returns:
        ``directory``.
    """
    folder = directory / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    lines = []
    for kind, plugins in entries.items():
        lines += [f"[{group(kind)}]", *(f"{plugin} = {value}" for plugin, value in plugins.items()), ""]
    (folder / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    return directory
