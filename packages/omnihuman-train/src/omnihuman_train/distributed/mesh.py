"""The processes of a run, as ``torchrun`` starts them, and who does what among them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout

from omnihuman_train.config import ParallelConfig


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes of a run and this one's place among them; alone unless told otherwise.

    Processes are numbered with ``dp_replicate`` outermost and ``sequence`` innermost. Those of one sequence group see
    the same samples.

    Attributes:
        device: Device of this process.
        rank: Its number, from 0.
        size: Processes in all.
        sequence: Processes that share a sample.
        weights: Mesh over which weights are sharded, replicas outermost if there are any; None for one process.
        sequence_group: The processes that share this one's samples; None if it is alone with them.
        saving: Group of all processes for checkpoints, on the CPU, apart from that of training; None for one process.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    sequence: int = 1
    weights: DeviceMesh | None = None
    sequence_group: dist.ProcessGroup | None = None
    saving: dist.ProcessGroup | None = None

    @property
    def main(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Which of the ``data_size`` equal parts of a batch is this process's."""
        return self.rank // self.sequence

    @property
    def data_size(self) -> int:
        """Parts that a batch is shared out in."""
        return self.size // self.sequence

    def gather(self, value: Any) -> list[Any]:
        """The values that all processes give, in their order; small ones, that pickle."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Go on once every process has come here."""
        if self.size > 1:
            dist.barrier(group=self.saving)


def processes() -> int:
    """Processes of this run: those of the group that is open, or else of ``torchrun``'s environment, or 1."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process, from 0; as :func:`processes`."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def join(config: ParallelConfig, device: str) -> World:
    """Take this process's place in the run; opens the process group unless it is open, or one process is all.

    Args:
        config: Sizes of the mesh.
        device: ``cpu``, or ``cuda`` for the GPU of this process's number on its machine.

    Raises:
        ValueError: the sizes do not multiply to the number of processes.
    """
    size = processes()
    replicate, shard, sequence = config.sizes(size)
    if size == 1:
        return World(device=torch.device(device))
    place = torch.device(device)
    if place.type == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    # Workers that are started again now and then miss each other; the default of 30 minutes would hide it.
    wait = timedelta(minutes=config.timeout_minutes)
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo", timeout=wait)
    mesh = init_device_mesh(place.type, (replicate, shard * sequence), mesh_dim_names=("dp_replicate", "dp_shard"))
    samples = init_device_mesh(place.type, (size // sequence, sequence), mesh_dim_names=("data", "sequence"))
    saving = None
    if dist.get_backend() != "fake":
        # The threads that write checkpoints talk while training does: not over the same connections.
        saving = dist.new_group(backend="gloo", timeout=wait)
        # Groups of meshes have their backend's default, whatever that of all processes is, and no argument for another.
        for group in (*mesh.get_all_groups(), *samples.get_all_groups()):
            _set_pg_timeout(wait, group)
    return World(
        device=place,
        rank=rank(),
        size=size,
        sequence=sequence,
        weights=mesh if replicate > 1 else mesh["dp_shard"],
        sequence_group=samples.get_group("sequence") if sequence > 1 else None,
        saving=saving,
    )


def leave() -> None:
    """Close the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
