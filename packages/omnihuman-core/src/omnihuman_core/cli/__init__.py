"""The command line: ``omnihuman-core bench-attention``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from omnihuman_core.__about__ import __version__

FAULTS, BAD_INPUT, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 on success, 1 where a backend is wrong, 2 on bad input, 130 after Ctrl-C.
    """
    try:
        arguments = _parser().parse_args(argv)
        # torch and the backends are imported once the arguments have been read.
        from omnihuman_core.cli.bench_attention import bench_attention

        right = bench_attention(
            device=arguments.device,
            dtype=arguments.dtype,
            shapes=arguments.shapes,
            out=arguments.out,
            seconds=arguments.seconds,
        )
    except ValueError as error:
        print(f"omnihuman-core: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("omnihuman-core: interrupted, nothing was written", file=sys.stderr)
        return INTERRUPTED
    return 0 if right else FAULTS


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        raise ValueError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="omnihuman-core", description="Tools of the model's core.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True)
    bench = commands.add_parser("bench-attention", help="measure the attention backends and write the table for auto")
    add = bench.add_argument
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on CUDA, float32 elsewhere")
    add("--shapes", metavar="BxLxNxK,...", help="batch, tokens, heads, width of a head (default: what models have)")
    add(
        "--seconds",
        type=float,
        default=2.0,
        metavar="S",
        help="time for one shape and direction (default: %(default)g)",
    )
    add("--out", type=Path, metavar="FILE", help="table to write or add to (default: ~/.omnihuman/attention.json)")
    return parser
