"""The reference condition: pictures through any video VAE (paper section 3.2)."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor

from omnihuman_core.contracts.conditioning import ReferenceCondition
from omnihuman_core.contracts.vae import VideoVAE


def encode_reference(vae: VideoVAE, pictures: Tensor) -> ReferenceCondition:
    """Final latents of reference pictures, each encoded alone as a video of one frame.

    Its null is :func:`omnihuman_core.dropout.null_latents`.

    Args:
        vae: The model's VAE.
        pictures: ``(B, 3, r, H, W)`` in [-1, 1], sides that the VAE's spatial stride divides.

    Returns:
        Latents ``(B, C, r, h, w)``.

    Raises:
        ValueError: the pictures have another shape, or a side does not fit.
    """
    if pictures.ndim != 5 or pictures.shape[1] != 3:
        raise ValueError(f"reference pictures must be (B, 3, r, H, W), got {tuple(pictures.shape)}")
    vae.latent_spec.latent_size(pictures.shape[3], pictures.shape[4])
    count = pictures.shape[2]
    latents = vae.encode(rearrange(pictures, "b c r h w -> (b r) c 1 h w"))
    return ReferenceCondition(latents=rearrange(latents, "(b r) c 1 h w -> b c r h w", r=count))  # (B, C, r, h, w)
