"""The command ``omnihuman-train plan``."""

from __future__ import annotations

import argparse
from typing import Any

from omnihuman_train.recipe_argument import add_recipe_arguments, read_recipe

DOES_NOT_FIT = 1


def add_plan_command(commands: Any) -> None:
    """Add ``plan`` to the subcommands of a parser."""
    plan = commands.add_parser(
        "plan", help="memory, operations and time of a run, and what would not fit; runs nothing"
    )
    add_recipe_arguments(plan)
    plan.add_argument("--gpus", required=True, type=int, metavar="N", help="GPUs of the run")
    plan.add_argument("--gpu", required=True, help="a100, h100, h200, b200, l40s or rtx4090")
    plan.add_argument(
        "--mfu", type=float, default=0.35, help="share of the nominal rate that the run is assumed to reach (0.35)"
    )
    plan.set_defaults(run=_plan)


def _plan(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from omnihuman_train.config import TrainConfig
    from omnihuman_train.gpus import gpu
    from omnihuman_train.plan import make_plan
    from omnihuman_train.plan_report import tables, verdict
    from omnihuman_train.stage_config import StageConfig
    from omnihuman_train.workload import workload

    chosen = gpu(arguments.gpu)
    if not 0 < arguments.mfu <= 1:
        raise ValueError(f"--mfu must lie in (0, 1], got {arguments.mfu}")
    config = read_recipe(arguments, (TrainConfig, StageConfig), "a TrainConfig or a StageConfig")
    plan = make_plan(workload(config), chosen, arguments.gpus)
    console = Console()
    for table in tables(plan, mfu=arguments.mfu):
        console.print(table)
    # Printed as one line however wide the terminal is: it may be copied.
    print(verdict(plan))
    return 0 if plan.fits else DOES_NOT_FIT
