"""Contract of a causal video VAE (paper section 3.1).

A VAE package implements :class:`VideoVAE` and registers it under the entry-point group ``omnihuman.video_vae.v1``.

Invariants (each is a test of the same number in ``omnihuman_core.testing.vae``):

1. ``encode`` maps ``(B, 3, T, H, W)`` to ``(B, *latent_spec.latent_shape(T, H, W))``.
2. ``decode`` maps latents back to ``(B, 3, T, H, W)``, finite, of the input's dtype.
3. Latents are *final*: normalised with the VAE's own constants, so that they are what the backbone sees. Nobody
   scales them again; ``decode`` takes them as ``encode`` gives them.
4. Causality: latent frame ``i`` does not depend on pixel frames after its own, and decoded frames do not depend on
   later latent frames.
5. Streaming: ``decode_stream`` over any split of the latents along time yields the frames of ``decode`` (within the
   tolerance the VAE declares in ``streaming_tolerance``; ``None`` says that it cannot stream exactly).
6. ``encode`` is deterministic unless a generator is given; with a generator it samples the posterior.
7. One picture is a video of one frame.

Stability: 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

from torch import Generator, Tensor

from omnihuman_core.contracts.latents import LatentSpec


@runtime_checkable
class VideoVAE(Protocol):
    """Encoder and decoder between video in [-1, 1] and final latents."""

    @property
    def latent_spec(self) -> LatentSpec:
        """Answers every question about sizes."""
        ...

    @property
    def streaming_tolerance(self) -> float | None:
        """Largest absolute difference of streamed and whole decoding in fp32; None where streaming is not exact."""
        ...

    def encode(self, video: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Encode ``(B, 3, T, H, W)`` in [-1, 1] to final latents ``(B, C, t, h, w)``.

        Args:
            video: Pixels in [-1, 1]; ``T = 1 + k * temporal_stride``, sides multiples of ``spatial_stride``.
            generator: Samples the posterior when given; the posterior mean otherwise.

        Raises:
            ValueError: a size does not fit ``latent_spec``.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Decode final latents ``(B, C, t, h, w)`` to video ``(B, 3, T, H, W)``, nominally in [-1, 1] (not clamped)."""
        ...

    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Decode consecutive pieces of one clip, ``(B, C, t_i, h, w)`` each, at constant memory.

        Yields:
            The pixels that became final with each piece, ``(B, 3, T_i, H, W)``; together they are the whole clip.
        """
        ...
