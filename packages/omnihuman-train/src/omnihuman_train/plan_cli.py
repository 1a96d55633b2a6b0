"""The command ``omnihuman-train plan``."""

from __future__ import annotations

import argparse
from typing import Any


def add_plan_command(commands: Any) -> None:
    """Add ``plan`` to the subcommands of a parser."""
    plan = commands.add_parser(
        "plan", help="memory, operations and time of a run, and what would not fit; runs nothing"
    )
    plan.add_argument("--config", required=True, metavar="MODULE:FUNCTION", help="recipe, a function without arguments")
    plan.add_argument("--gpus", required=True, type=int, metavar="N", help="GPUs of the run")
    plan.add_argument("--gpu", required=True, help="a100, h100, h200, b200, l40s or rtx4090")
    plan.add_argument("--set", action="append", default=[], metavar="A.B=C", help="change one field of the recipe")
    plan.add_argument(
        "--mfu", type=float, default=0.35, help="share of the nominal rate that the run is assumed to reach (0.35)"
    )
    plan.set_defaults(run=_plan)


def _plan(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from omnihuman_core.config import load_function, override
    from omnihuman_train.config import TrainConfig
    from omnihuman_train.gpus import gpu
    from omnihuman_train.plan import make_plan
    from omnihuman_train.plan_report import tables, verdict
    from omnihuman_train.stage_config import StageConfig
    from omnihuman_train.workload import workload

    chosen = gpu(arguments.gpu)
    if not 0 < arguments.mfu <= 1:
        raise ValueError(f"--mfu must lie in (0, 1], got {arguments.mfu}")
    config = load_function(arguments.config)()
    if not isinstance(config, TrainConfig | StageConfig):
        raise ValueError(
            f"--config {arguments.config}: must return a TrainConfig or a StageConfig, got {type(config).__name__}"
        )
    plan = make_plan(workload(override(config, arguments.set)), chosen, arguments.gpus)
    console = Console()
    for table in tables(plan, mfu=arguments.mfu):
        console.print(table)
    # Printed as one line however wide the terminal is: it may be copied.
    print(verdict(plan))
