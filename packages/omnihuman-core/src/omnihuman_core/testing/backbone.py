"""Conformance kit of :class:`omnihuman_core.contracts.backbone.Backbone`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from omnihuman_core.contracts.backbone import CONDITIONS, Backbone
from omnihuman_core.contracts.conditioning import (
    AudioCondition,
    Conditioning,
    MotionCondition,
    PoseCondition,
    ReferenceCondition,
    TextCondition,
)
from omnihuman_core.testing.numerics import assert_close, assert_refused, max_error
from omnihuman_core.testing.registration import check_registrable

BATCH = 2
TEXT_TOKENS = 5


class BackboneConformance:
    """Subclass it and give a fixture ``backbone``, in fp32 and in ``eval`` mode.

    Layers that start at zero hide faults: pass the backbone through
    :func:`omnihuman_core.testing.numerics.randomize` first.

    Attributes:
        audio_tokens: Audio tokens ``A`` of a latent frame.
        tolerance: Largest difference where two computations must agree.
    """

    audio_tokens: int = 4
    tolerance: float = 1e-4

    def latents(self, backbone: Backbone, sizes: tuple[int, int, int] = (2, 2, 3)) -> Tensor:
        """Noisy latents of ``sizes`` times the multiples that the backbone asks for."""
        spec = backbone.spec
        frames, height, width = sizes
        multiple = spec.spatial_multiple
        shape = (BATCH, spec.latent_channels, frames * spec.temporal_multiple, height * multiple, width * multiple)
        return _randn(*shape, seed=0)

    def conditioning(self, backbone: Backbone, latents: Tensor, names: frozenset[str] | None = None) -> Conditioning:
        """Random conditions that fit ``latents``.

        Args:
            backbone: Tells widths and accepted conditions.
            latents: Noisy latents.
            names: Conditions to make; all that the backbone accepts where None.
        """
        spec = backbone.spec
        names = spec.conditions if names is None else names
        batch, channels, frames, height, width = latents.shape
        motion = spec.temporal_multiple if "motion" in names else 0
        text = TextCondition(
            tokens=_randn(batch, TEXT_TOKENS, spec.text_dim or 1, seed=1),
            # The last sample has fewer tokens that count.
            mask=torch.arange(TEXT_TOKENS) < torch.tensor([TEXT_TOKENS] * (batch - 1) + [2])[:, None],
            pooled=None if spec.pooled_dim is None else _randn(batch, spec.pooled_dim, seed=2),
        )
        parts: dict[str, Any] = {
            "text": text,
            "audio": AudioCondition(
                tokens=_randn(batch, motion + frames, self.audio_tokens, spec.audio_dim or 1, seed=3)
            ),
            "pose": PoseCondition(
                features=_randn(batch, spec.pose_channels or 1, motion + frames, height, width, seed=4)
            ),
            "reference": ReferenceCondition(latents=_randn(batch, channels, 1, height, width, seed=5)),
            "motion": MotionCondition(latents=_randn(batch, channels, max(motion, 1), height, width, seed=6)),
        }
        return Conditioning(**{name: parts[name] for name in names})

    def run(
        self, backbone: Backbone, latents: Tensor, conditioning: Conditioning, sigma: Tensor | None = None
    ) -> Tensor:
        """Velocity without gradients, at noise levels that differ between samples."""
        with torch.no_grad():
            return backbone(latents, torch.linspace(0.9, 0.3, len(latents)) if sigma is None else sigma, conditioning)

    def test_0_registrable(self, backbone: Any) -> None:
        """The backbone can be rebuilt from its written configuration, and follows the protocol."""
        assert isinstance(backbone, Backbone)
        check_registrable(backbone)

    def test_1_velocity_shape(self, backbone: Backbone) -> None:
        """Invariant 1: the velocity has the shape and dtype of the latents."""
        latents = self.latents(backbone)
        velocity = self.run(backbone, latents, self.conditioning(backbone, latents, frozenset()))
        assert velocity.shape == latents.shape, f"velocity has {tuple(velocity.shape)}, latents {tuple(latents.shape)}"
        assert velocity.dtype == latents.dtype, f"velocity has dtype {velocity.dtype}, latents {latents.dtype}"
        assert bool(torch.isfinite(velocity).all()), "velocity holds values that are not finite"

    def test_2_sizes(self, backbone: Backbone) -> None:
        """Invariant 2: every size that ``spec`` allows works, others are refused."""
        spec = backbone.spec
        for sizes in ((1, 1, 1), (3, 1, 2), (1, 5, 3)):
            latents = self.latents(backbone, sizes)
            velocity = self.run(backbone, latents, self.conditioning(backbone, latents, frozenset()))
            assert velocity.shape == latents.shape, f"latents {tuple(latents.shape)} give {tuple(velocity.shape)}"
        latents, none = self.latents(backbone), Conditioning()
        wrong = torch.cat([latents, latents[:, :1]], dim=1)
        assert_refused(lambda: self.run(backbone, wrong, none), "latents with one channel too many")
        if spec.spatial_multiple > 1:
            assert_refused(lambda: self.run(backbone, latents[..., :-1], none), "a latent width that does not fit")
        if spec.temporal_multiple > 1:
            assert_refused(lambda: self.run(backbone, latents[:, :, :-1], none), "latent frames that do not fit")

    def test_3_absent_conditions(self, backbone: Backbone) -> None:
        """Invariant 3: any condition may be absent: none at all, each alone, each left out."""
        latents, accepted = self.latents(backbone), backbone.spec.conditions
        choices = [frozenset[str](), accepted]
        choices += [frozenset({name}) for name in accepted] + [accepted - {name} for name in accepted]
        for names in dict.fromkeys(choices):
            velocity = self.run(backbone, latents, self.conditioning(backbone, latents, names))
            assert bool(torch.isfinite(velocity).all()), f"velocity is not finite with the conditions {sorted(names)}"

    def test_4_samples_are_independent(self, backbone: Backbone) -> None:
        """Invariant 4: a sample's velocity in a batch is its velocity alone."""
        latents = self.latents(backbone)
        conditioning, sigma = self.conditioning(backbone, latents), torch.tensor([0.9, 0.3])
        batch = self.run(backbone, latents, conditioning, sigma)
        assert max_error(batch[0], batch[1]) > self.tolerance, "velocity is constant: randomise the weights first"
        for i in range(BATCH):
            one = slice(i, i + 1)
            alone = self.run(backbone, latents[one], conditioning.map(lambda value, one=one: value[one]), sigma[one])  # type: ignore[misc]
            assert_close(alone, batch[one], self.tolerance, f"velocity of sample {i} alone")

    def test_5_motion_frames(self, backbone: Backbone) -> None:
        """Invariant 5: motion frames come apart from the noisy latents, which alone get a velocity."""
        if "motion" not in backbone.spec.conditions:
            return
        latents = self.latents(backbone)
        first = self.conditioning(backbone, latents)
        velocity = self.run(backbone, latents, first)
        assert velocity.shape == latents.shape, (
            f"with motion frames, velocity has {tuple(velocity.shape)} for latents {tuple(latents.shape)}"
        )

    def test_6_sigma_per_sample(self, backbone: Backbone) -> None:
        """Invariant 6: each sample has a noise level of its own, anywhere in [0, 1]."""
        latents, none = self.latents(backbone), Conditioning()
        ends = self.run(backbone, latents, none, torch.tensor([0.0, 1.0]))
        assert bool(torch.isfinite(ends).all()), "velocity is not finite at sigma 0 or 1"
        first = self.run(backbone, latents, none, torch.tensor([0.2, 0.5]))
        second = self.run(backbone, latents, none, torch.tensor([0.2, 0.9]))
        assert_close(second[0], first[0], self.tolerance, "velocity of sample 0 when the sigma of sample 1 changes")
        assert max_error(second[1], first[1]) > self.tolerance, "velocity does not depend on sigma"

    def test_7_conditions(self, backbone: Backbone) -> None:
        """Invariant 7: conditions that ``spec`` does not accept are refused; those it accepts count."""
        spec, latents = backbone.spec, self.latents(backbone)
        for name in sorted(set(CONDITIONS) - spec.conditions):
            refused = self.conditioning(backbone, latents, frozenset({name}))
            assert_refused(lambda refused=refused: self.run(backbone, latents, refused), f"the condition {name}")  # type: ignore[misc]
        everything = self.conditioning(backbone, latents)
        velocity = self.run(backbone, latents, everything)
        for name, part in everything.parts().items():
            parts: dict[str, Any] = {name: part.map(lambda x: x if x.dtype == torch.bool else 1 - x)}
            other = replace(everything, **parts)
            changed = self.run(backbone, latents, other)
            assert max_error(changed, velocity) > self.tolerance, (
                f"the condition {name} is accepted but changes nothing"
            )
        if spec.text_dim is not None and everything.text is not None:
            wide = replace(everything.text, tokens=everything.text.tokens.repeat(1, 1, 2))
            wrong = replace(everything, text=wide)
            assert_refused(lambda: self.run(backbone, latents, wrong), "text tokens of another width")

    def test_8_text_padding(self, backbone: Backbone) -> None:
        """Invariant 8: text tokens that do not count change nothing, whether they are there or not."""
        # The last sample, which alone has tokens that do not count.
        latents = self.latents(backbone)[-1:]
        everything = self.conditioning(backbone, self.latents(backbone)).map(lambda value: value[-1:])
        text = everything.text
        if text is None:
            return
        sigma = torch.tensor([0.3])
        velocity = self.run(backbone, latents, everything, sigma)
        noise = torch.where(text.mask[..., None], text.tokens, _randn(*text.tokens.shape, seed=7))
        for changed, what in ((replace(text, tokens=noise), "other padding"), (text.trimmed(), "no padding")):
            other = self.run(backbone, latents, replace(everything, text=changed), sigma)
            assert_close(other, velocity, self.tolerance, f"velocity with {what}")


def _randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
