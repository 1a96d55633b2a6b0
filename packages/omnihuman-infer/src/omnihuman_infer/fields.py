"""Fields of a request: what is taken for a path, a number, a choice, and the error that names the field otherwise."""

from __future__ import annotations

import math
import os
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Generic, TypeVar


class RequestError(ValueError):
    """A request that cannot be carried out; the message is one line that names the field and the fix."""


class ModelError(RequestError):
    """The model cannot be used: damaged, or made of components that do not fit. No other request would fare better."""


PathT = TypeVar("PathT", Path, Path | None)


class PathField(Generic[PathT]):
    """A field of a record that is given as text or as any path, and read as a :class:`~pathlib.Path`.

    A descriptor, since type checkers take from one what may be written and what is read.

    Args:
        default: Of the field.

    Raises:
        RequestError: on writing, where the value is no path.
    """

    def __init__(self, default: PathT) -> None:
        self._default: PathT = default

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, record: Any, owner: type | None = None) -> PathT:
        value: PathT = self._default if record is None else vars(record)[self._name]
        return value

    def __set__(self, record: Any, value: str | os.PathLike[str] | PathT) -> None:
        # A Python caller may hand in anything; what may not be None is checked with the other values.
        given: object = value
        vars(record)[self._name] = None if given is None else Path(path_text(self._name, given))


def path_text(name: str, value: object) -> str:
    """The text of a path.

    Raises:
        RequestError: it is none.
    """
    try:
        text = os.fspath(value)  # type: ignore[call-overload]
    except TypeError:
        text = None
    if not isinstance(text, str):
        raise RequestError(f"{name}: must be a path, got {value!r}")
    return text


def is_number(value: object) -> bool:
    """Whether a value is a finite number, of Python or of another library."""
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)


def check_number(name: str, value: float | None, low: float, high: float) -> None:
    """Refuse what is neither None nor a number in [low, high].

    Raises:
        RequestError: it is neither.
    """
    if value is not None and not (is_number(value) and low <= value <= high):
        raise RequestError(f"{name}: must be between {low:g} and {high:g}, got {value}")


def check_integer(name: str, value: int | None, low: int, high: int) -> None:
    """Refuse what is neither None nor a whole number in [low, high].

    Raises:
        RequestError: it is neither.
    """
    whole = not isinstance(value, bool) and isinstance(value, Integral)
    if value is not None and not (whole and low <= value <= high):
        raise RequestError(f"{name}: must be a whole number between {low} and {high}, got {value}")


def check_text(name: str, value: object) -> None:
    """Refuse what is neither None nor a text.

    Raises:
        RequestError: it is neither.
    """
    if value is not None and not isinstance(value, str):
        raise RequestError(f"{name}: must be a text, got {value!r}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse what is no choice.

    Raises:
        RequestError: it is none.
    """
    if value not in choices:
        raise RequestError(f"{name}: must be one of {', '.join(choices)}, got {value!r}")
