"""What a backbone is conditioned on: text, audio, pose, reference picture, motion frames (paper section 3.2).

Every part may be ``None`` (the backbone then has no such tokens at all). A *null* part, which stands for "dropped" in
training and for the negative branch of guidance, comes from the part's encoder, never from ``torch.zeros`` at a call
site. All parts of one :class:`Conditioning` share the batch size.

Stability: 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F


def _check(value: Tensor, name: str, shape: str) -> None:
    if value.ndim != len(shape.split()):
        raise ValueError(f"{name} must have shape ({', '.join(shape.split())}), got {tuple(value.shape)}")


class _Part:
    """Tensor-wise operations shared by the condition parts: each field is a tensor with the batch first, or None."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Apply ``function`` to every tensor of the part."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        changed = {name: function(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **changed)  # type: ignore[type-var]

    def where(self, keep: Tensor, null: Self) -> Self:
        """Keep this part for samples where ``keep`` (B,) is true and take ``null`` for the others (same shapes)."""
        changed: dict[str, Tensor] = {}
        for f in fields(self):  # type: ignore[arg-type]
            mine, other = getattr(self, f.name), getattr(null, f.name)
            if isinstance(mine, Tensor):
                changed[f.name] = torch.where(keep.view(-1, *[1] * (mine.ndim - 1)), mine, other.to(mine.dtype))
        return replace(self, **changed)  # type: ignore[type-var]

    @classmethod
    def stack(cls, parts: Sequence[Self]) -> Self:
        """Concatenate along the batch; the parts' :meth:`shapes` agree but for B."""
        names = [name for name, value in vars(parts[0]).items() if isinstance(value, Tensor)]
        values: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return replace(parts[0], **values)  # type: ignore[type-var]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, by name, without the axes on which parts of one batch may differ."""
        return {name: tuple(value.shape) for name, value in vars(self).items() if isinstance(value, Tensor)}

    @property
    def batch_size(self) -> int:
        """Samples ``B`` in the part."""
        return int(getattr(self, fields(self)[0].name).shape[0])  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class TextCondition(_Part):
    """Text tokens.

    Attributes:
        tokens: ``(B, S, D_text)``.
        mask: ``(B, S)`` bool, true where a token counts.
        pooled: ``(B, P)`` one vector for the whole text, or None.
        padded: False where it is known that every token counts: a backbone then needs no mask.
    """

    tokens: Tensor
    mask: Tensor
    pooled: Tensor | None = None
    padded: bool = True

    def __post_init__(self) -> None:
        _check(self.tokens, "text.tokens", "B S D")
        _check(self.mask, "text.mask", "B S")

    def trimmed(self) -> TextCondition:
        """Without the tokens at the end that count in no sample, which no backbone's result depends on.

        Reads the mask, for which a GPU has to be waited for: once per text, not at every step.
        """
        counting = self.mask.any(dim=0).nonzero()
        # A text in which nothing counts keeps one token under its mask.
        length = int(counting[-1]) + 1 if len(counting) else 1
        mask = self.mask[:, :length]
        return replace(self, tokens=self.tokens[:, :length], mask=mask, padded=not bool(mask.all()))

    def where(self, keep: Tensor, null: Self) -> Self:
        """Keep this text for samples where ``keep`` (B,) is true and take ``null`` for the others (same shapes)."""
        return replace(super().where(keep, null), padded=self.padded or null.padded)

    @classmethod
    def stack(cls, parts: Sequence[Self]) -> Self:
        """Concatenate along the batch; shorter texts are filled up with tokens that do not count."""
        length = max(text.tokens.shape[1] for text in parts)
        padded = any(text.padded or text.tokens.shape[1] < length for text in parts)
        return super().stack([text._filled_up(length, padded=padded) for text in parts])

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, by name, without the length of the text."""
        batch, _, dim = self.tokens.shape
        return {**super().shapes(), "tokens": (batch, dim), "mask": (batch,)}

    def _filled_up(self, length: int, *, padded: bool) -> Self:
        missing = length - self.tokens.shape[1]
        tokens, mask = F.pad(self.tokens, (0, 0, 0, missing)), F.pad(self.mask, (0, missing))
        return replace(self, tokens=tokens, mask=mask, padded=padded)


@dataclass(frozen=True, kw_only=True)
class AudioCondition(_Part):
    """Audio tokens of each latent frame.

    Attributes:
        tokens: ``(B, t, A, D_audio)``; the ``A`` tokens of latent frame ``i`` come from the pixel frames it covers and
            from their neighbours.
    """

    tokens: Tensor

    def __post_init__(self) -> None:
        _check(self.tokens, "audio.tokens", "B t A D")


@dataclass(frozen=True, kw_only=True)
class PoseCondition(_Part):
    """Pose features aligned with the latents, stacked on their channel axis.

    Attributes:
        features: ``(B, C_pose, t, h, w)``.
    """

    features: Tensor

    def __post_init__(self) -> None:
        _check(self.features, "pose.features", "B C t h w")


@dataclass(frozen=True, kw_only=True)
class ReferenceCondition(_Part):
    """Latents of the reference picture(s), packed into the token sequence with a fixed temporal position.

    Attributes:
        latents: ``(B, C, r, h, w)``, final latents of ``r`` pictures.
    """

    latents: Tensor

    def __post_init__(self) -> None:
        _check(self.latents, "reference.latents", "B C r h w")


@dataclass(frozen=True, kw_only=True)
class MotionCondition(_Part):
    """Clean latents of the last frames of the segment before, put in front of the noisy latents on the time axis.

    Attributes:
        latents: ``(B, C, m, h, w)``, final latents.
    """

    latents: Tensor

    def __post_init__(self) -> None:
        _check(self.latents, "motion.latents", "B C m h w")


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """All conditions of a batch; ``None`` where a condition is absent.

    With motion frames present, audio tokens and pose features cover the motion frames too: their time axis is
    ``m + t``, motion frames first.
    """

    text: TextCondition | None = None
    audio: AudioCondition | None = None
    pose: PoseCondition | None = None
    reference: ReferenceCondition | None = None
    motion: MotionCondition | None = None

    def __post_init__(self) -> None:
        sizes = {name: part.batch_size for name, part in self.parts().items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"all conditions must share one batch size, got {sizes}")

    def parts(self) -> dict[str, _Part]:
        """The conditions that are present, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    def map(self, function: Callable[[Tensor], Tensor]) -> Conditioning:
        """Apply ``function`` to every tensor."""
        changed: dict[str, Any] = {name: part.map(function) for name, part in self.parts().items()}
        return replace(self, **changed)

    def to(self, *args: Any, **kwargs: Any) -> Conditioning:
        """Move or cast every floating tensor; masks keep their dtype."""

        def move(value: Tensor) -> Tensor:
            moved = value.to(*args, **kwargs)
            return moved if value.is_floating_point() else moved.to(value.dtype)

        return self.map(move)

    def shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Shapes by condition; conditionings in which they are equal can be stacked."""
        return {name: part.shapes() for name, part in self.parts().items()}

    @staticmethod
    def stack(conditionings: Sequence[Conditioning]) -> Conditioning:
        """Concatenate along the batch; every element must have the same parts, with the same shapes but for B.

        Texts may differ in length: shorter ones are filled up with tokens that do not count.
        """
        names = [set(c.parts()) for c in conditionings]
        if any(n != names[0] for n in names):
            raise ValueError(f"cannot stack conditionings with different parts: {[sorted(n) for n in names]}")
        columns = {name: [c.parts()[name] for c in conditionings] for name in names[0]}
        merged: dict[str, Any] = {name: type(parts[0]).stack(parts) for name, parts in columns.items()}
        return Conditioning(**merged)
