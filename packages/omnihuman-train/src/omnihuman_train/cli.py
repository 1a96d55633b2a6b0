"""``omnihuman-train``: run a recipe, plan it, make its data, or make a model to start from."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from omnihuman_train.__about__ import __version__
from omnihuman_train.data_cli import add_data_commands
from omnihuman_train.plan_cli import add_plan_command
from omnihuman_train.recipe_argument import add_recipe_arguments, read_recipe
from omnihuman_train.stopping import Stopped

# 75 is EX_TEMPFAIL of sysexits.h: nothing is wrong, start it again.
BAD_INPUT, STOPPED, INTERRUPTED = 2, 75, 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        raise ValueError(f"{message}; see {self.prog} --help")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = _Parser(prog="omnihuman-train", description="Omni-conditions training.")
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = top.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a recipe, or parts of it; resumes where it stopped")
    add_recipe_arguments(run)
    run.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the run")
    run.add_argument(
        "--parts",
        help="parts to run, in order: render,vae,encode,decoder,backbone,export (default: all the recipe has)",
    )
    run.add_argument("--trial", type=int, metavar="N", help="cut the VAE and every stage to at most N steps")
    run.set_defaults(run=_run)
    init = commands.add_parser("init", help="give a pretrained text-to-video backbone audio, pose and reference paths")
    init.add_argument("--base", required=True, type=Path, metavar="DIR", help="published weights or a model directory")
    init.add_argument("--out", required=True, type=Path, metavar="DIR", help="model directory to write")
    init.add_argument("--set", action="append", default=[], metavar="A=B", help="change one field of InitConfig")
    init.set_defaults(run=_init)
    add_data_commands(commands)
    add_plan_command(commands)
    return top


def _run(arguments: argparse.Namespace) -> None:
    from omnihuman_train import runs, stage_config, vae_config, vae_run
    from omnihuman_train.config import TrainConfig
    from omnihuman_train.parts import PARTS

    kinds = (TrainConfig, stage_config.StageConfig, vae_config.VAETrainConfig)
    config = read_recipe(arguments, kinds, "a TrainConfig, a StageConfig or a VAETrainConfig")
    if isinstance(config, stage_config.StageConfig):
        _run_stage(config, arguments)
        return
    known = list(PARTS if isinstance(config, TrainConfig) else vae_config.PARTS)
    # A run on packed clips renders none.
    default = known if isinstance(config, TrainConfig) else list(config.parts)
    parts = default if arguments.parts is None else arguments.parts.split(",")
    if unknown := [part for part in parts if part not in known]:
        raise ValueError(f"--parts: unknown {unknown}; known are {known}")
    if isinstance(config, TrainConfig):
        config = config if arguments.trial is None else runs.shortened(config, arguments.trial)
        runs.run(config, arguments.out, parts)
    else:
        config = config if arguments.trial is None else vae_config.shortened(config, arguments.trial)
        vae_run.run_vae(config, arguments.out, parts)


def _run_stage(config: Any, arguments: argparse.Namespace) -> None:
    from omnihuman_train import stage_config, stage_run

    if arguments.parts is not None:
        raise ValueError("--parts: a stage on encoded data is one part; leave it out")
    config = config if arguments.trial is None else stage_config.shortened(config, arguments.trial)
    stage_run.run_stage(config, arguments.out)


def _init(arguments: argparse.Namespace) -> None:
    from omnihuman_core.config import override
    from omnihuman_train.init import InitConfig, initialise

    index = initialise(arguments.base, arguments.out, override(InitConfig(), arguments.set))
    print(f"{arguments.out}: {', '.join(index.components)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0; 1 where ``plan`` finds that a run does not fit; 2 on bad input, with one line that says what is wrong; 75
        where a stop signal ended a run that the same command goes on with; 130 after Ctrl-C.
    """
    # Under torchrun: who says so.
    name = "omnihuman-train" + (f" (process {os.environ['RANK']})" if "RANK" in os.environ else "")
    hint = "nothing was written"
    try:
        arguments = parser().parse_args(argv)
        hint = _GOES_ON.get(arguments.command, hint)
        # Torch takes seconds to import; --help shall not.
        return int(arguments.run(arguments) or 0)
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        print(f"{name}: {where}{error.strerror or error}", file=sys.stderr)
        return BAD_INPUT
    except (ValueError, FloatingPointError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return BAD_INPUT
    except RuntimeError as error:
        # By name: torch may not be imported.
        if type(error).__name__ != "OutOfMemoryError":
            raise
        print(f"{name}: the GPU has too little free memory; {_LESS_MEMORY}", file=sys.stderr)
        return BAD_INPUT
    except Stopped as stopped:
        _leave()
        if os.environ.get("RANK", "0") == "0":
            print(f"{name}: {stopped}", file=sys.stderr)
        return INTERRUPTED if stopped.by == "SIGINT" else STOPPED
    except KeyboardInterrupt:
        print(f"{name}: stopped; {hint}", file=sys.stderr)
        return INTERRUPTED


def _leave() -> None:
    from omnihuman_train.distributed.mesh import leave

    leave()


_LESS_MEMORY = (
    "raise run.accumulate, lower run.batch_size, set activation_checkpoint to full where the recipe has it, or end "
    "what else uses it (omnihuman-train plan counts what a stage needs)"
)
# What a command says where it was stopped, if it left something behind.
_GOES_ON = {
    "run": "the same command goes on from the last checkpoint",
    "data": "the same command goes on after the last shard",
}
