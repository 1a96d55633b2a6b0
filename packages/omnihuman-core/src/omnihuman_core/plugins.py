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

    Of a name that two packages claim it gives one: :func:`plugin` refuses that name, and the others stay of use.
    """
    return {name: claims[0] for name, claims in _claims(kind).items()}


def plugin(kind: str, name: str) -> Any:
    """Import the plugin ``name`` of a kind.

    Raises:
        PluginError: no such plugin is installed, two packages claim the name with different objects, or its import
            fails, in whatever way.
    """
    claims = _claims(kind)
    if name not in claims:
        raise PluginError(
            f"unknown {kind} plugin {name!r}; installed are {', '.join(sorted(claims)) or 'none'} "
            f"(entry-point group {group(kind)!r}){other_versions(kind, name)}"
        )
    entry, *others = claims[name]
    if others:
        rivals = " and ".join(f"{claim.value}{_of_package(claim)}" for claim in claims[name])
        raise PluginError(f"two packages register the {kind} plugin {name!r} ({rivals}); uninstall one of them")
    try:
        return entry.load()
    except Exception as error:
        # What a package does at import may fail in any way: a missing library, a driver, a licence.
        reason = " ".join(str(error).split())
        if not isinstance(error, ImportError | AttributeError):
            reason = f"{type(error).__name__}: {reason}"
        raise PluginError(f"{kind} plugin {name!r} ({entry.value}) cannot be imported: {reason}") from error


def other_versions(kind: str, name: str) -> str:
    """End of a message on a plugin that is not found: where it is registered for another version of the contract."""
    pattern = re.compile(rf"omnihuman\.{kind}\.v(\d+)")
    groups = [pattern.fullmatch(entry.group) for entry in entry_points(name=name)]
    versions = sorted({match[1] for match in groups if match} - {str(CONTRACT_VERSION)})
    if not versions:
        return ""
    return (
        f"; {name!r} is registered for version {' and '.join(versions)} of the contract, this omnihuman-core speaks "
        f"version {CONTRACT_VERSION}"
    )


def _claims(kind: str) -> dict[str, list[EntryPoint]]:
    """Entry points of a kind by name, those of one object once."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=group(kind)):
        claims = found.setdefault(entry.name, [])
        if entry.value not in [claim.value for claim in claims]:
            claims.append(entry)
    return found


def _of_package(entry: EntryPoint) -> str:
    return f" of {entry.dist.name}" if entry.dist is not None else ""


def resolve_ops(name: str = "eager") -> Ops:
    """The ops bundle ``name``.

    Raises:
        PluginError: no such bundle is installed, or what is registered is no bundle.
    """
    ops = plugin("ops", name)()
    if not isinstance(ops, Ops):
        raise PluginError(f"ops plugin {name!r} must return omnihuman_core.contracts.Ops, got {type(ops).__name__}")
    return ops
