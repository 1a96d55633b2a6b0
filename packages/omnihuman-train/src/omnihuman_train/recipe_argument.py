"""``--config`` and ``--set``: the recipe that a command works on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--config`` and ``--set`` to a command."""
    parser.add_argument(
        "--config", required=True, metavar="MODULE:FUNCTION", help="recipe, a function without arguments"
    )
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="change one field of the recipe")


def read_recipe(arguments: argparse.Namespace, kinds: tuple[type, ...], wanted: str) -> Any:
    """What the function returns, with the fields changed that ``--set`` names.

    Args:
        arguments: The command line.
        kinds: Configurations that the command takes.
        wanted: These in words, for the message.

    Raises:
        ValueError: no such function, another kind of configuration, or a field that does not fit.
    """
    from omnihuman_core.config import load_function, override

    # A console script looks beside itself for modules; recipes lie where the user is.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    config = load_function(arguments.config)()
    if not isinstance(config, kinds):
        raise ValueError(f"--config {arguments.config}: must return {wanted}, got {type(config).__name__}")
    return override(config, arguments.set)
