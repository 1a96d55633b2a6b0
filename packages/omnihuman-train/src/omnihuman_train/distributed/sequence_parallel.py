"""Ulysses sequence parallelism for the MMDiT (DeepSpeed-Ulysses, arXiv 2309.14509), applied from outside the model.

Each rank holds an equal part of the picture of every latent frame, and all text. Everything outside attention works on
single tokens, or, for audio, on tokens of one frame, and never notices. Around attention an all-to-all trades tokens
for heads: a rank attends all tokens with its share of the heads.

Every collective here is paired with its exact adjoint, so that a backward pass on all ranks differentiates the *sum* of
the ranks' losses. These are equal: the mean of the gradients over the ranks, which data parallelism takes anyway, is
the gradient of one loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor, nn

from omnihuman_core.contracts import Conditioning
from omnihuman_core.mmdit import MMDiT
from omnihuman_core.mmdit.blocks import BlockInputs

Group = dist.ProcessGroup


def parallelize_sequence(model: nn.Module, group: Group) -> None:
    """Split the tokens of ``model`` over the ranks of ``group``, in place; its inputs and outputs stay whole.

    All ranks of the group must be given the same batch. The tokens of a frame, and those of a reference picture, must
    be a multiple of the group's size; so must the heads.

    Args:
        model: An :class:`~omnihuman_core.mmdit.MMDiT`.
        group: Ranks that share a sample.

    Raises:
        ValueError: another backbone, or heads that do not divide.
    """
    if not isinstance(model, MMDiT):
        raise ValueError(f"parallel.sequence: {type(model).__name__} cannot be split; only an MMDiT can")
    size = group.size()
    if model.config.num_heads % size:
        raise ValueError(f"parallel.sequence is {size}, which does not divide the {model.config.num_heads} heads")
    split = _Split(group)
    model.register_forward_pre_hook(split.measure, with_kwargs=True)
    blocks = [*model.double_blocks, *model.single_blocks]
    for block in blocks:
        # Set on the block alone: the refiner's attention runs over text, which every rank holds whole.
        block.ops = replace(block.ops, attention=split.attention(block.ops.attention))
        block.register_forward_pre_hook(split.localize, with_kwargs=True)
    blocks[0].register_forward_pre_hook(split.scatter, with_kwargs=True)
    blocks[-1].register_forward_hook(split.gather)


@dataclass
class _Layout:
    """Tokens of one forward pass: reference, motion and video, text."""

    reference: int
    frames: int
    frame: int
    inputs: BlockInputs | None = None

    def parts(self, size: int) -> tuple[int, int]:
        """Local tokens of the reference, and of a frame."""
        return self.reference // size, self.frame // size


class _Split:
    """What the hooks share: the group, and the layout of the pass that runs."""

    def __init__(self, group: Group) -> None:
        self.group, self.size, self.rank = group, group.size(), group.rank()
        self.layout = _Layout(0, 0, 0)

    def measure(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the model: note how its tokens will lie."""
        latents, _, conditioning = (*args, *(kwargs[k] for k in ("latents", "sigma", "conditioning")[len(args) :]))
        frames, rows, columns = _grid(model, latents)
        reference = 0
        if isinstance(conditioning, Conditioning):
            if conditioning.motion is not None:
                frames += _grid(model, conditioning.motion.latents)[0]
            if conditioning.reference is not None:
                t, h, w = _grid(model, conditioning.reference.latents)
                reference = t * h * w
        for name, tokens in (("a latent frame", rows * columns), ("the reference", reference)):
            if tokens % self.size:
                raise ValueError(
                    f"parallel.sequence is {self.size}, which does not divide the {tokens} tokens of {name}; "
                    f"choose another bucket size"
                )
        self.layout = _Layout(reference, frames, rows * columns)

    def cut(self, x: Tensor, dim: int) -> Tensor:
        """This rank's visual tokens of ``x``, along ``dim``; what follows them (text) stays."""
        layout, visual = self.layout, self.layout.reference + self.layout.frames * self.layout.frame
        reference, frames, text = x.split_with_sizes(
            (layout.reference, visual - layout.reference, x.shape[dim] - visual), dim=dim
        )
        frames = frames.reshape(*x.shape[:dim], layout.frames, layout.frame, *x.shape[dim + 1 :]).chunk(
            self.size, dim + 1
        )[self.rank]
        reference = reference.chunk(self.size, dim)[self.rank] if layout.reference else reference
        return torch.cat([reference, frames.flatten(dim, dim + 1), text], dim=dim)

    def scatter(self, _block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Before the first block: keep this rank's tokens."""
        return (self.cut(args[0], 1), *args[1:]), kwargs

    def localize(self, _block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Before every block: positions and runs of this rank's tokens."""
        position = next(i for i, value in enumerate(args) if isinstance(value, BlockInputs))
        inputs: BlockInputs = args[position]
        if self.layout.inputs is None:
            self.layout.inputs = replace(
                inputs,
                segments=tuple(length // self.size for length in inputs.segments),
                cos=self.cut(inputs.cos, 0),
                sin=self.cut(inputs.sin, 0),
                first_audible=inputs.first_audible // self.size,
            )
        local = replace(self.layout.inputs, condition=inputs.condition)
        return (*args[:position], local, *args[position + 1 :]), kwargs

    def gather(self, _block: Any, _args: tuple[Any, ...], output: Any) -> Any:
        """After the last block: all tokens again, in their order."""
        visual, text = output if isinstance(output, tuple) else (output, None)
        # It holds on to the graph of the pass.
        self.layout.inputs = None
        reference, frame = self.layout.parts(self.size)
        lengths = (reference, self.layout.frames * frame)
        first, frames, rest = visual.split_with_sizes((*lengths, visual.shape[1] - sum(lengths)), dim=1)
        first = rearrange(_all_gather(first, self.group), "R B l D -> B (R l) D")
        frames = rearrange(_all_gather(frames, self.group), "R B (t l) D -> B (t R l) D", t=self.layout.frames)
        whole = torch.cat([first, frames, rest], dim=1)  # (B, L or L + S, D)
        return (whole, text) if isinstance(output, tuple) else whole

    def attention(self, attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """``attend`` over all tokens, with this rank's heads."""

        def ulysses(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None) -> Tensor:
            reference, frame = self.layout.parts(self.size)
            local = reference + self.layout.frames * frame
            heads = q.shape[2] // self.size
            mine = slice(self.rank * heads, (self.rank + 1) * heads)
            whole = [torch.cat([self._tokens(x[:, :local]), x[:, local:, mine]], dim=1) for x in (q, k, v)]
            # The order of the keys does not matter; their mask is of the same order, visual tokens first.
            out = attend(*whole, mask=mask)  # (B, L + S, N / R, K)
            visual, words = out.split_with_sizes((local * self.size, out.shape[1] - local * self.size), dim=1)
            visual = rearrange(visual, "B (R l) n K -> R B l n K", R=self.size)
            visual = rearrange(_all_to_all(visual, self.group), "R B l n K -> B l (R n) K")
            words = rearrange(_all_gather(words, self.group), "R B S n K -> B S (R n) K")
            return torch.cat([visual, words], dim=1)  # (B, l + S, N, K)

        return ulysses

    def _tokens(self, x: Tensor) -> Tensor:
        """Some tokens with all heads -> all tokens with some heads: ``(B, l, N, K) -> (B, R l, N / R, K)``."""
        parts = rearrange(x, "B l (R n) K -> R B l n K", R=self.size)
        return rearrange(_all_to_all(parts, self.group), "R B l n K -> B (R l) n K")


def _grid(model: MMDiT, latents: Tensor) -> tuple[int, int, int]:
    (t, h, w), (pt, ph, pw) = latents.shape[2:], model.config.patch_size
    return t // pt, h // ph, w // pw


def _all_to_all(x: Tensor, group: Group) -> Tensor:
    """``(R, ...)``: part ``r`` goes to rank ``r``, and part ``r`` of the result came from there."""
    out: Tensor = _AllToAll.apply(x, group)  # type: ignore[no-untyped-call]
    return out


def _all_gather(x: Tensor, group: Group) -> Tensor:
    """``(...) -> (R, ...)``."""
    out: Tensor = _AllGather.apply(x, group)  # type: ignore[no-untyped-call]
    return out


class _AllToAll(torch.autograd.Function):
    """Its own adjoint."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        x = x.contiguous()
        out = torch.empty_like(x)
        dist.all_to_all_single(out, x, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _all_to_all(grads[0], ctx.group), None


class _AllGather(torch.autograd.Function):
    """The adjoint sums what every rank asks of this one's part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        x = x.contiguous()
        out = x.new_empty(group.size(), *x.shape)
        dist.all_gather(list(out.unbind()), x, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _all_to_all(grads[0], ctx.group).sum(0), None
