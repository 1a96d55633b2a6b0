"""Classifier-free guidance on audio and text: negatives(sigma) x scale(sigma) x region map (paper section 3.4).

Pose, reference and motion are in every branch: they are never guided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Literal
from weakref import ref

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from omnihuman_core.contracts import Backbone, Conditioning

Negative = Conditioning | Callable[[Tensor], Conditioning]


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How the branches of guidance are combined.

    ``joint`` (the paper): ``v = v_n + s (v_c - v_n)``, audio and text together.
    ``split``: ``v = v_n + s_t (v_text - v_n) + s (v_c - v_text)``, where ``v_text`` has the text and the negative's
    audio. The paper's scale is 6.5; it anneals the scale over the steps without giving the curve, so curve and end are
    settings (our choice).

    Attributes:
        scale: ``s`` at sigma 1; in ``split`` mode the scale of audio.
        mode: Which branches there are.
        text_scale: ``s_t`` at sigma 1, for ``split`` mode; None takes ``scale``.
        schedule: Course of every scale as sigma falls from 1 to 0.
        end_scale: Value of every scale at sigma 0; needed unless the schedule is constant.
        rescale: Share in [0, 1] of the prediction whose standard deviation is set back to that of the positive branch
            (arXiv 2305.08891, equations 15 and 16).
        region: ``M (B or 1, 1, 1 or t, h, w)`` in [0, 1]: where guidance acts. Where it is 0 the result is the negative
            branch's prediction, bit for bit. None is everywhere.
    """

    scale: float = 6.5
    mode: Literal["joint", "split"] = "joint"
    text_scale: float | None = None
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    end_scale: float | None = None
    rescale: float = 0.0
    region: Tensor | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.mode not in ("joint", "split"):
            raise ValueError(f"guidance mode must be 'joint' or 'split', got {self.mode!r}")
        if self.schedule not in ("constant", "linear", "cosine"):
            raise ValueError(f"guidance schedule must be 'constant', 'linear' or 'cosine', got {self.schedule!r}")
        if self.schedule != "constant" and self.end_scale is None:
            raise ValueError(f"guidance schedule {self.schedule!r} needs an end_scale")
        if self.text_scale is not None and self.mode == "joint":
            raise ValueError("guidance text_scale is only used in 'split' mode; set mode='split' or drop it")
        for name in ("scale", "text_scale", "end_scale"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"guidance {name} must be a finite number of at least 0, got {value}")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"guidance rescale must lie in [0, 1], got {self.rescale}")
        if self.region is not None:
            shape = tuple(self.region.shape)
            if self.region.ndim != 5 or shape[1] != 1:
                raise ValueError(f"guidance region must have shape (B or 1, 1, 1 or t, h, w), got {shape}")
            if not bool(((self.region >= 0) & (self.region <= 1)).all()):
                raise ValueError("guidance region must lie in [0, 1]")

    @property
    def active(self) -> bool:
        """False where the result is the positive branch's prediction at every level: one branch is enough."""
        scales = [self.scale, self.scale if self.text_scale is None else self.text_scale]
        if self.schedule != "constant":
            scales.append(self.scale if self.end_scale is None else self.end_scale)
        return self.region is not None or any(scale != 1 for scale in scales)

    def scale_at(self, start: float, sigma: Tensor) -> Tensor:
        """Scale that begins at ``start``, at the levels ``sigma (B,)``; returns ``(B,)`` fp32."""
        sigma = sigma.float()
        if self.schedule == "constant" or self.end_scale is None:
            return torch.full_like(sigma, start)
        kept = sigma if self.schedule == "linear" else (1 + torch.cos(math.pi * (1 - sigma))) / 2
        return self.end_scale + (start - self.end_scale) * kept

    def combine(self, negative: Tensor, positive: Tensor, sigma: Tensor, *, text: Tensor | None = None) -> Tensor:
        """Guided velocity from the branches' velocities.

        Args:
            negative: ``v_n (B, C, t, h, w)``, audio and text dropped.
            positive: ``v_c``, all conditions.
            sigma: ``(B,)``.
            text: ``v_text``, audio dropped; for ``split`` mode.

        Returns:
            ``(B, C, t, h, w)`` in the dtype of the branches.
        """
        dtype = negative.dtype
        base, full = negative.float(), positive.float()
        scale = self.scale_at(self.scale, sigma).view(-1, 1, 1, 1, 1)
        if self.mode == "joint":
            velocity = base + scale * (full - base)
        elif text is not None:
            start = self.scale if self.text_scale is None else self.text_scale
            text_scale = self.scale_at(start, sigma).view(-1, 1, 1, 1, 1)
            velocity = base + text_scale * (text.float() - base) + scale * (full - text.float())
        else:
            raise ValueError("guidance in 'split' mode needs the velocity of the text branch")
        if self.rescale > 0:
            axes = tuple(range(1, velocity.ndim))
            ratio = full.std(dim=axes, keepdim=True) / velocity.std(dim=axes, keepdim=True).clamp(min=1e-8)
            velocity = velocity * (self.rescale * ratio + 1 - self.rescale)
        if self.region is not None:
            region = self.region.to(velocity)
            velocity = torch.where(region == 0, base, torch.lerp(base, velocity, region))
        return velocity.to(dtype)


# Latent positions of a sample up to which the branches run as one batch: about 4,000 tokens of 2 x 2 positions. From
# there on a sample fills a GPU by itself, and branches of their own need neither twice the memory nor a mask.
BATCHED_POSITIONS = 16384


# Positive conditions -> (negative conditions, state of the branches' tensors, the branches as one batch).
_STACKED: MutableMapping[Conditioning, tuple[ref[Conditioning], list[int], Conditioning]] = WeakIdKeyDictionary()


def _stack(branches: list[Conditioning], positive: Conditioning, negative: Conditioning) -> Conditioning:
    """The branches as one batch: while sampling the same tensors at every step, for a backbone that knows them."""
    if torch.is_grad_enabled():
        return Conditioning.stack(branches)
    tensors = [x for branch in branches for part in branch.parts().values() for x in vars(part).values()]
    state = [x._version for x in tensors if isinstance(x, Tensor) and not x.is_inference()]
    known = _STACKED.get(positive)
    if known is None or known[0]() is not negative or known[1] != [len(branches), *state]:
        known = _STACKED[positive] = ref(negative), [len(branches), *state], Conditioning.stack(branches)
    return known[2]


def guided(
    backbone: Backbone,
    latents: Tensor,
    sigma: Tensor,
    positive: Conditioning,
    negative: Negative,
    guidance: Guidance,
    *,
    batch_branches: bool | None = None,
) -> Tensor:
    """Guided velocity at ``latents``.

    Args:
        backbone: Predicts the velocity of each branch.
        latents: ``(B, C, t, h, w)`` noisy latents.
        sigma: ``(B,)`` noise level.
        positive: All conditions.
        negative: Audio and text of the negative branch (their nulls, or a negative prompt), or a function of ``sigma``
            that gives them. Its pose, reference and motion are not read: those of ``positive`` stand in every branch.
        guidance: How to combine the branches.
        batch_branches: Run the branches as one batch where their shapes allow it; one after the other saves memory.
            None takes one batch up to :data:`BATCHED_POSITIONS`.

    Returns:
        ``(B, C, t, h, w)``.
    """
    if not guidance.active:
        return backbone(latents, sigma, positive)
    dropped = negative if isinstance(negative, Conditioning) else negative(sigma)
    branches = [replace(positive, text=dropped.text, audio=dropped.audio), positive]
    if guidance.mode == "split":
        branches.append(replace(positive, audio=dropped.audio))
    if batch_branches is None:
        batch_branches = latents[0, 0].numel() <= BATCHED_POSITIONS
    if batch_branches and all(branch.shapes() == positive.shapes() for branch in branches):
        count = len(branches)
        conditioning = _stack(branches, positive, dropped)
        stacked = backbone(latents.repeat(count, 1, 1, 1, 1), sigma.repeat(count), conditioning)
        velocities = list(stacked.chunk(count))
    else:
        velocities = [backbone(latents, sigma, branch) for branch in branches]
    text = velocities[2] if guidance.mode == "split" else None
    return guidance.combine(velocities[0], velocities[1], sigma, text=text)
