"""Contract of a denoising backbone (paper section 3.2).

Registered under the entry-point group ``omnihuman.backbone.v1``.

Invariants (tests of the same number in ``omnihuman_core.testing.backbone``):

1. ``forward(latents, sigma, conditioning)`` returns the velocity, with the shape and dtype of ``latents``.
2. Patch size and token order never leak: nothing but ``spec`` tells what sizes fit.
3. Absent conditions (``None``) are legal for every condition the backbone accepts.
4. Samples of a batch do not influence each other.
5. Motion frames are given apart from the noisy latents; the velocity covers the noisy latents only.
6. ``sigma`` is one noise level per sample, in [0, 1]; 1 is pure noise.
7. A condition that ``spec`` does not accept raises ``ValueError``.
8. Text tokens that do not count change nothing, whether they are there or not.

Stability: 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from omnihuman_core.contracts.conditioning import Conditioning

CONDITIONS = ("text", "audio", "pose", "reference", "motion")


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """What a backbone needs from the components round it; the pipeline checks it before any work.

    Attributes:
        latent_channels: Channels ``C`` of the latents it denoises.
        spatial_multiple: Latent sides must be multiples of this.
        temporal_multiple: Latent frame counts must be multiples of this.
        conditions: Names of the conditions it accepts, out of :data:`CONDITIONS`.
        text_dim: Width of text tokens, or None.
        pooled_dim: Width of the pooled text vector, or None.
        audio_dim: Width of audio tokens, or None.
        pose_channels: Channels of pose features, or None.
    """

    latent_channels: int
    spatial_multiple: int
    temporal_multiple: int
    conditions: frozenset[str]
    text_dim: int | None = None
    pooled_dim: int | None = None
    audio_dim: int | None = None
    pose_channels: int | None = None

    def __post_init__(self) -> None:
        unknown = self.conditions - set(CONDITIONS)
        if unknown:
            raise ValueError(f"unknown conditions {sorted(unknown)}; known are {CONDITIONS}")

    def check(self, latents: Tensor, conditioning: Conditioning) -> None:
        """Raise ``ValueError`` where latents or conditions do not fit this backbone."""
        if latents.ndim != 5 or latents.shape[1] != self.latent_channels:
            raise ValueError(
                f"latents must have shape (B, {self.latent_channels}, t, h, w), got {tuple(latents.shape)}; "
                "the VAE and the backbone must agree on channels"
            )
        _, _, frames, *size = latents.shape
        if frames % self.temporal_multiple or any(side % self.spatial_multiple for side in size):
            raise ValueError(
                f"latent frames must be a multiple of {self.temporal_multiple} and sides of {self.spatial_multiple}, "
                f"got {tuple(latents.shape[2:])}"
            )
        refused = set(conditioning.parts()) - self.conditions
        if refused:
            raise ValueError(f"this backbone takes no {sorted(refused)} condition; it takes {sorted(self.conditions)}")
        for name, width, want in (
            ("text", conditioning.text and conditioning.text.tokens.shape[-1], self.text_dim),
            ("audio", conditioning.audio and conditioning.audio.tokens.shape[-1], self.audio_dim),
            ("pose", conditioning.pose and conditioning.pose.features.shape[1], self.pose_channels),
        ):
            if width is not None and width != want:
                raise ValueError(f"{name} condition has width {width}, the backbone wants {want}")
        motion = 0 if conditioning.motion is None else conditioning.motion.latents.shape[2]
        for name, length in (
            ("audio", conditioning.audio and conditioning.audio.tokens.shape[1]),
            ("pose", conditioning.pose and conditioning.pose.features.shape[2]),
        ):
            if length is not None and length != motion + frames:
                raise ValueError(
                    f"{name} condition covers {length} latent frames, motion ({motion}) + video ({frames}) are "
                    f"{motion + frames}"
                )


@runtime_checkable
class Backbone(Protocol):
    """Predicts the velocity of the probability flow."""

    @property
    def spec(self) -> BackboneSpec:
        """What this backbone needs."""
        ...

    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Velocity ``noise - x0`` at ``latents``.

        Args:
            latents: ``(B, C, t, h, w)`` noisy latents.
            sigma: ``(B,)`` noise level in [0, 1].
            conditioning: Conditions of the batch.

        Returns:
            ``(B, C, t, h, w)``.
        """
        ...

    def __call__(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Same as :meth:`forward`."""
        ...
