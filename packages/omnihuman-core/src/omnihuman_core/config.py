"""Strict configuration: frozen dataclasses to TOML and back, and overrides by dotted path.

Supported field types: ``bool``, ``int``, ``float`` (an integer is taken too), ``str``, ``Literal``, ``Optional`` and
other unions, tuples, ``dict[str, X]`` and nested dataclasses. TOML has no null: a field that is ``None`` is left out of
the file, or is the text ``"none"`` where leaving it out would mean another default; a missing key of an optional field
without default reads as ``None``.

Every error is a ``ValueError`` whose one line names the field by its dotted path.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

ConfigT = TypeVar("ConfigT")

# No configuration of ours comes near this; a larger file is a weight file or worse under the wrong name.
MAX_TOML_BYTES = 1 << 20

# Stands for None in an optional field.
NONE = "none"

# Names on the way to a field, the text of its new value, and the whole dotted path for messages.
_Assignment = tuple[Sequence[str], str, str]


def to_toml(config: Any) -> str:
    """Write a config dataclass as TOML; :func:`from_table` reads it back to an equal config.

    Raises:
        ValueError: a field holds a value that TOML cannot carry.
    """
    return "\n".join(_table_lines(_to_table(config, ""), ())).strip() + "\n"


def from_table(cls: type[ConfigT], table: Mapping[str, Any], *, path: str = "") -> ConfigT:
    """Build the dataclass ``cls`` from a parsed TOML table.

    Args:
        cls: A dataclass type.
        table: Values by field name, tables for nested dataclasses.
        path: Dotted path of the table, for error messages.

    Raises:
        ValueError: an unknown key, a missing key, a wrong type, or whatever ``cls`` itself refuses.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    where = path or cls.__name__
    unknown = sorted(set(table) - set(fields))
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; known keys are {', '.join(sorted(fields)) or 'none'}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in table:
            values[name] = _convert(hints[name], table[name], _join(path, name))
        elif not _has_default(field):
            if not _is_optional(hints[name]):
                raise ValueError(f"{where}: missing key {name!r} ({_type_name(hints[name])})")
            values[name] = None
    return cls(**values)


def read_toml(path: str | Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        ValueError: the file is missing, larger than 1 MiB, or no TOML.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_TOML_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) > MAX_TOML_BYTES:
        raise ValueError(f"{path}: larger than {MAX_TOML_BYTES} bytes, this is no configuration file")
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a TOML file (it is not UTF-8 text)") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not a TOML file ({error})") from None


def override(config: ConfigT, assignments: Sequence[str]) -> ConfigT:
    """Change fields by dotted path, as ``--set a.b=c`` of the command lines does.

    The text after ``=`` is a TOML value; quotes round a string may be left out, and ``none`` empties an optional field.
    A field of an optional part that is empty fills the part with its defaults first. Of two assignments to one field
    the later one counts. Each dataclass checks itself once, with all of its new values: fields that must agree may be
    changed together, in any order.

    Raises:
        ValueError: no ``=``, an unknown field, a value of the wrong type, or whatever a dataclass itself refuses.
    """
    changes: list[_Assignment] = []
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path.strip():
            raise ValueError(f"--set {assignment!r}: write it as field.subfield=value")
        changes.append((path.strip().split("."), text.strip(), path.strip()))
    return typing.cast(ConfigT, _assigned(config, changes))


def load_function(reference: str) -> Callable[..., Any]:
    """Import ``"module:function"``.

    Raises:
        ValueError: the text has another form, or names nothing that can be imported and called.
    """
    module_name, colon, name = reference.partition(":")
    if not colon or not module_name or not name:
        raise ValueError(f"{reference!r}: write it as module:function")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"{reference!r}: cannot import {module_name!r} ({error})") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{reference!r}: module {module_name!r} has no function {name!r}")
    return typing.cast(Callable[..., Any], function)


def _assigned(config: Any, changes: Sequence[_Assignment]) -> Any:
    hints = typing.get_type_hints(type(config))
    names = [f.name for f in dataclasses.fields(config)]
    by_field: dict[str, list[_Assignment]] = {}
    for keys, text, path in changes:
        if keys[0] not in names:
            raise ValueError(f"--set {path}: unknown field {keys[0]!r}; known fields are {', '.join(names)}")
        by_field.setdefault(keys[0], []).append((keys[1:], text, path))
    values = {name: _field(getattr(config, name), hints[name], name, group) for name, group in by_field.items()}
    return dataclasses.replace(config, **values) if values else config


def _field(value: Any, hint: Any, name: str, changes: Sequence[_Assignment]) -> Any:
    """The new value of one field; an assignment to all of it undoes those to its parts before."""
    whole = max((number for number, (keys, _, _) in enumerate(changes) if not keys), default=-1)
    if whole >= 0:
        _, text, path = changes[whole]
        value = _convert_text(hint, text, path)
    parts = changes[whole + 1 :]
    if not parts:
        return value
    path = parts[0][2]
    if value is None:
        value = _default_part(hint, name, path)
    if not dataclasses.is_dataclass(value):
        raise ValueError(f"--set {path}: {name!r} has no fields")
    return _assigned(value, parts)


def _default_part(hint: Any, name: str, path: str) -> Any:
    """What an optional part is with its defaults; None where it is no dataclass."""
    (part, *others) = [choice for choice in typing.get_args(hint) if choice is not types.NoneType] or [None]
    if others or not isinstance(part, type) or not dataclasses.is_dataclass(part):
        return None
    if missing := [field.name for field in dataclasses.fields(part) if field.init and not _has_default(field)]:
        raise ValueError(f"--set {path}: {name!r} is not set; set all of it, as {name}={{{missing[0]}=...}}")
    return part()


def _convert_text(hint: Any, text: str, path: str) -> Any:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return _convert(hint, text, path)
    try:
        return _convert(hint, value, path)
    except ValueError:
        # "name=2024" is a string for a string field; for any other field the first error stands.
        try:
            return _convert(hint, text, path)
        except ValueError:
            pass
        raise


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return from_table(hint, value, path=path)
    if origin is Literal:
        # Compared with the type, since True == 1.
        if any(type(value) is type(choice) and value == choice for choice in args):
            return value
        raise ValueError(f"{path}: must be one of {', '.join(map(repr, args))}, got {value!r}")
    if origin in (Union, types.UnionType):
        return _convert_union(hint, value, path)
    if origin is tuple and isinstance(value, list | tuple):
        return _convert_tuple(hint, value, path)
    if origin in (dict, Mapping, typing.get_origin(Mapping[str, Any])) and isinstance(value, Mapping):
        return {key: _convert(args[1], item, _join(path, key)) for key, item in value.items()}
    if hint is float and type(value) is int:
        return float(value)
    if hint in (bool, int, float, str) and type(value) is hint:
        return value
    # TOML has no tuples: whoever writes one as Python does is told how.
    written = ", written as [a, b]" if origin is tuple else ""
    raise ValueError(f"{path}: must be {_type_name(hint)}{written}, got {value!r}")


def _convert_union(hint: Any, value: Any, path: str) -> Any:
    choices = [choice for choice in typing.get_args(hint) if choice is not types.NoneType]
    if value in (None, NONE) and _is_optional(hint):
        return None
    if len(choices) == 1:
        return _convert(choices[0], value, path)
    for choice in choices:
        try:
            return _convert(choice, value, path)
        except ValueError:
            continue
    raise ValueError(f"{path}: must be {_type_name(hint)}, got {value!r}")


def _convert_tuple(hint: Any, value: Sequence[Any], path: str) -> tuple[Any, ...]:
    args = typing.get_args(hint)
    items = (args[0],) * len(value) if args[-1] is Ellipsis else args
    if len(items) != len(value):
        raise ValueError(f"{path}: must have {len(items)} entries, got {len(value)}")
    return tuple(
        _convert(item, entry, f"{path}[{index}]") for index, (item, entry) in enumerate(zip(items, value, strict=True))
    )


def _to_table(config: Any, path: str) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        where = _join(path, field.name)
        if value is not None:
            table[field.name] = _to_value(value, where)
        elif field.default is not None and _has_default(field):
            table[field.name] = NONE
    return table


def _to_value(value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _to_table(value, path)
    if isinstance(value, Mapping):
        return {str(key): _to_value(item, _join(path, str(key))) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_value(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{path}: a {type(value).__name__} cannot be written as TOML")


def _table_lines(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    lines = [f"{_key(key)} = {_value(value)}" for key, value in table.items() if not isinstance(value, Mapping)]
    for key, value in table.items():
        if isinstance(value, Mapping):
            inner = (*path, key)
            lines += ["", f"[{'.'.join(map(_key, inner))}]", *_table_lines(value, inner)]
    return lines


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        # JSON strings are TOML basic strings, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(map(_value, value)) + "]"


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if bare else _value(key)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _is_optional(hint: Any) -> bool:
    return types.NoneType in typing.get_args(hint)


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")
