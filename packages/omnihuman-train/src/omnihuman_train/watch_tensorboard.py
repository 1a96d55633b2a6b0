"""Scalars for TensorBoard, and the same ones for Weights & Biases; both are extras."""

from __future__ import annotations

import secrets
from importlib import import_module
from pathlib import Path
from typing import Any

from omnihuman_train.watch_record import Scalars


class TensorBoardSink:
    """Event files that ``tensorboard --logdir`` shows.

    Args:
        folder: Where they go.

    Raises:
        ValueError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            # Untyped calls where it is installed, unknown ones where it is not.
            self._tensorboard: Any = import_module("torch.utils.tensorboard")
        except ImportError:
            raise ValueError(
                "watch.tensorboard needs TensorBoard: pip install omnihuman-train[tensorboard], "
                "or --set watch.tensorboard=false"
            ) from None
        self._folder = folder
        self._writer: Any = None

    def write(self, step: int, scalars: Scalars) -> None:
        """Write the scalars of a step."""
        if self._writer is None:
            # A run that goes on repeats steps: what was there of them would make the curves jump back.
            self._writer = self._tensorboard.SummaryWriter(self._folder, purge_step=step)
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the files."""
        if self._writer is not None:
            self._writer.close()


class WandbSink:
    """A run of Weights & Biases; where it sends to, and whether at all, its own settings say (``WANDB_MODE``).

    Args:
        project: Name of the project.
        folder: Folder of the run, whose name is the run's; its id is kept there in ``wandb_id.txt``, so that a resumed
            run goes on in the same curves, and no other folder of that name does.

    Raises:
        ValueError: ``wandb`` is not installed.
    """

    def __init__(self, project: str, folder: Path) -> None:
        try:
            wandb: Any = import_module("wandb")
        except ImportError:
            raise ValueError("watch.wandb needs its package: pip install omnihuman-train[wandb]") from None
        name = folder.resolve().name
        self._run = wandb.init(project=project, dir=str(folder), id=_run_id(folder), name=name, resume="allow")

    def write(self, step: int, scalars: Scalars) -> None:
        """Log the scalars of a step."""
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        """End the run."""
        self._run.finish()


def _run_id(folder: Path) -> str:
    """The id that a run has in its folder; drawn where it has none yet."""
    note = folder / "wandb_id.txt"
    if not note.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        note.write_text(secrets.token_hex(8))
    return note.read_text()
