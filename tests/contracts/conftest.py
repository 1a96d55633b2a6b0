"""Runs a conformance kit on a plugin and tells which of its tests fail."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest


def failing_tests(kit: Any, **fixtures: Any) -> set[str]:
    failed = set()
    for name, test in inspect.getmembers(kit, inspect.ismethod):
        if not name.startswith("test_"):
            continue
        wanted = inspect.signature(test).parameters
        try:
            test(**{parameter: fixtures[parameter] for parameter in wanted})
        except Exception:
            failed.add(name)
    return failed


@pytest.fixture
def failing() -> Callable[..., set[str]]:
    return failing_tests
