"""Plugins: implementations of the contracts, found through entry points and chosen by name.

The entry-point group carries the major version of the contract, ``omnihuman.<kind>.v1``. Nothing is imported before
it is asked for, and nothing is guessed: a wrong name lists the installed ones.
"""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from omnihuman_core.contracts.ops import Ops

CONTRACT_VERSION = 1

KINDS = (
    "video_vae",
    "backbone",
    "feature_extractor",
    "condition_encoder",
    "ops",
    "objective",
    "state_dict_adapter",
    "checkpoint_importer",
)


class PluginError(ValueError):
    """A plugin is unknown, ambiguous, written for another contract version, or fails to import."""


def group(kind: str) -> str:
    """Entry-point group of a kind of plugin: ``"video_vae"`` -> ``"omnihuman.video_vae.v1"``.

    Raises:
        PluginError: ``kind`` is none of :data:`KINDS`.
    """
    if kind not in KINDS:
        raise PluginError(f"unknown kind of plugin {kind!r}; known are {', '.join(KINDS)}")
    return f"omnihuman.{kind}.v{CONTRACT_VERSION}"


def check_group(name: str, kind: str) -> None:
    """Check that ``name``, read from a file, is the group of ``kind`` in the version that this release speaks.

    Raises:
        PluginError: another kind, or another version of the contract.
    """
    expected = group(kind)
    match = re.fullmatch(rf"omnihuman\.{kind}\.v(\d+)", name)
    if match is None:
        raise PluginError(f"group must be {expected!r}, got {name!r}")
    if name != expected:
        raise PluginError(
            f"group {name!r} is version {match[1]} of the contract, this omnihuman-core speaks version "
            f"{CONTRACT_VERSION} ({expected!r}); install a release of omnihuman-core that matches"
        )


def installed(kind: str) -> dict[str, EntryPoint]:
    """Entry points of a kind by name; nothing is imported.

    Raises:
        PluginError: two packages claim one name with different objects.
    """
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=group(kind)):
        other = found.setdefault(entry.name, entry)
        if other.value != entry.value:
            raise PluginError(
                f"two packages register the {kind} plugin {entry.name!r} ({other.value} and {entry.value}); "
                "uninstall one of them"
            )
    return found


def plugin(kind: str, name: str) -> Any:
    """Import the plugin ``name`` of a kind.

    Raises:
        PluginError: no such plugin is installed, or its import fails.
    """
    found = installed(kind)
    if name not in found:
        raise PluginError(
            f"unknown {kind} plugin {name!r}; installed are {', '.join(sorted(found)) or 'none'} "
            f"(entry-point group {group(kind)!r})"
        )
    try:
        return found[name].load()
    except (ImportError, AttributeError) as error:
        raise PluginError(f"{kind} plugin {name!r} ({found[name].value}) cannot be imported: {error}") from error


def resolve_ops(name: str = "eager") -> Ops:
    """The ops bundle ``name``.

    Raises:
        PluginError: no such bundle is installed, or what is registered is no bundle.
    """
    ops = plugin("ops", name)()
    if not isinstance(ops, Ops):
        raise PluginError(f"ops plugin {name!r} must return omnihuman_core.contracts.Ops, got {type(ops).__name__}")
    return ops
