"""Activation checkpointing of the transformer blocks, applied from outside the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from omnihuman_core.ops.attention import writes_scores

CheckpointMode = Literal["none", "selective", "full"]

# Names of the attention kernels whose results (output and log-sum-exp) are worth their memory: recomputing them costs
# a share that grows with the length, keeping them costs as much as one hidden state.
_ATTENTION = (
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_cudnn_attention",
    "flash_attn._flash_attn_forward",
    "omnihuman.joint_attention",
)


def checkpoint_blocks(model: nn.Module, mode: CheckpointMode) -> None:
    """Let every block of ``model`` recompute its activations in the backward pass, in place.

    Parameters keep their names; results and gradients stay what they are.

    Args:
        model: A backbone, or a module that holds one; see :func:`blocks_of`.
        mode: ``none`` keeps all activations; ``full`` keeps the input of each block alone; ``selective`` keeps the
            output and the log-sum-exp of its attention as well, which the backward would need the longest to make.

    Raises:
        ValueError: an unknown mode.
    """
    if mode not in ("none", "selective", "full"):
        raise ValueError(f"activation_checkpoint must be none, selective or full, got {mode!r}")
    if mode == "none":
        return
    for block in blocks_of(model):
        # An instance attribute in front of the class's method: hooks, names and types stay as they are.
        block.forward = partial(_recomputed, block.forward, mode)


def _recomputed(forward: Callable[..., Any], mode: CheckpointMode, *args: Any) -> Any:
    """A block whose activations are made again in the backward pass."""
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if mode == "selective" and _has_kernel(args):
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_attention)
    return checkpoint(forward, *args, **options)


def _has_kernel(args: Sequence[Any]) -> bool:
    """Whether attention over these tokens is one kernel, whose result can be kept.

    Where scores are written out, looking at every operation would only cost time.
    """
    tokens = [x for x in args if isinstance(x, Tensor)]
    return not writes_scores(tokens[0].device, sum(x.shape[1] for x in tokens))


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks of a model: the members of its outermost module lists, in order."""
    found: list[nn.Module] = []
    for child in model.children():
        found.extend(child if isinstance(child, nn.ModuleList) else blocks_of(child))
    return found


def _keep_attention(_context: Any, op: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    # Written as "aten.add.Tensor": namespace, name and overload.
    kept = str(op).rpartition(".")[0] in _ATTENTION
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
