"""``omnihuman-train``: run a recipe."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="omnihuman-train", description="Omni-conditions training.")
    commands = top.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a recipe, or parts of it; resumes where it stopped")
    run.add_argument("--config", required=True, metavar="MODULE:FUNCTION", help="recipe, a function without arguments")
    run.add_argument("--set", action="append", default=[], metavar="A.B=C", help="change one field of the recipe")
    run.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the run")
    run.add_argument("--parts", default="render,vae,encode,backbone", help="parts to run, in order (default: all)")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0, or 2 where the request is wrong."""
    arguments = parser().parse_args(argv)
    from omnihuman_core.config import load_function, override

    from omnihuman_train.runs import PARTS, run

    try:
        parts = arguments.parts.split(",")
        unknown = [part for part in parts if part not in PARTS]
        if unknown:
            raise ValueError(f"--parts: unknown {unknown}; known are {list(PARTS)}")
        config = override(load_function(arguments.config)(), arguments.set)
        run(config, arguments.out, parts)
    except (ValueError, FloatingPointError) as error:
        print(f"omnihuman-train: {error}", file=sys.stderr)
        return 2
    return 0
