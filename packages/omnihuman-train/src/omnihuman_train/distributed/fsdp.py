"""FSDP2, applied from outside: every weight is sharded, and each block gathers its own while it computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import MethodType
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from omnihuman_core.contracts import LossOutput
from omnihuman_train.distributed.activation_checkpoint import blocks_of
from omnihuman_train.distributed.exchange import Batch
from omnihuman_train.distributed.mesh import World
from omnihuman_train.distributed.sequence_parallel import parallelize_sequence
from omnihuman_train.distributed.shards import fill


def first_builds(world: World) -> AbstractContextManager[Any]:
    """Where a large model is built: on the first process for real, on the others on ``meta``, without memory."""
    return nullcontext() if world.main else torch.device("meta")


def place(model: nn.Module, world: World, precision: Literal["bf16", "fp32"] = "fp32") -> None:
    """Bring a model to its devices, in place: whole for one process, sharded over several.

    Several processes take the weights of the first one; the others may have built the model on ``meta``.

    Args:
        model: Real on the first process, with its initial or pretrained weights.
        world: Processes of the run.
        precision: As :func:`shard`.

    Raises:
        ValueError: processes that share samples, and a model or sizes that cannot be split among them.
    """
    if world.weights is None:
        model.to(world.device)
        return
    if world.sequence_group is not None:
        parallelize_sequence(getattr(model, "backbone", model), world.sequence_group)
    weights = tensors_of(model) if world.main else None
    # From here on all processes do the same, and none holds more than one tensor that is not its own.
    model.to("meta")
    shard(model, world, precision)
    materialise(model, world, weights)


def shard(model: nn.Module, world: World, precision: Literal["bf16", "fp32"] = "fp32") -> None:
    """Shard every parameter of ``model`` over ``world.weights``, in place; works on ``meta``.

    Blocks, the members of the model's outermost module lists, are groups of their own: gathered before their forward
    and backward pass, dropped after it. What is left is one group more, gathered from the forward to the end of the
    backward pass, so that any method of the encoders may be called.

    Args:
        model: A model whose blocks are called through ``forward``.
        world: Processes of the run, more than one.
        precision: ``bf16`` on a GPU gathers bf16 copies of fp32 weights, and reduces gradients in fp32. On a CPU
            everything is fp32.
    """
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if precision == "bf16" and world.device.type == "cuda":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks_of(model):
        fully_shard(block, mesh=world.weights, mp_policy=policy)
    fully_shard(model, mesh=world.weights, mp_policy=policy)


def materialise(model: nn.Module, world: World, weights: Mapping[str, Tensor] | None) -> None:
    """Give a sharded model on ``meta`` its memory and the weights of the first process, tensor by tensor.

    Args:
        model: What :func:`shard` has sharded.
        world: Processes of the run.
        weights: Every parameter and buffer by name, whole: for the first process; they may be mapped from a file.
    """
    model.to_empty(device=world.device)
    for name, target in tensors_of(model).items():
        dtype = target.dtype
        if weights is None:
            value = torch.empty(target.shape, dtype=dtype, device=world.device)
        else:
            value = weights[name].to(world.device, dtype).contiguous()
        dist.broadcast(value, 0)
        fill(target, value)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, those that are not saved included."""
    return {name: value.detach() for name, value in (*model.named_parameters(), *model.named_buffers())}


def loss_function(model: nn.Module, objective: Callable[[Any, Batch], LossOutput]) -> Callable[[Batch], LossOutput]:
    """``objective`` of a placed model; of a sharded one, in a way that gathers its weights.

    A sharded model reduces each gradient over all processes, so they must all use the same weights: their batches must
    hold the same parts (:func:`~omnihuman_train.distributed.exchange.same_parts`).
    """
    if not isinstance(model, FSDPModule):
        return partial(objective, model)

    def compute(self: nn.Module, batch: Batch) -> LossOutput:
        return objective(self, batch)

    # FSDP gathers the root's weights in `forward`, which a model need not have.
    name = "_omnihuman_loss"
    setattr(model, name, MethodType(compute, model))
    register_fsdp_forward_method(model, name)
    computed: Callable[[Batch], LossOutput] = getattr(model, name)
    return computed
