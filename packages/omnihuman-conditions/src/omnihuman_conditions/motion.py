"""The motion condition: the end of the segment before, through any video VAE (paper section 3.4)."""

from __future__ import annotations

from torch import Tensor

from omnihuman_core.contracts.conditioning import MotionCondition
from omnihuman_core.contracts.vae import VideoVAE


def encode_motion(vae: VideoVAE, video: Tensor, *, motion_frames: int) -> MotionCondition:
    """Final latents of the last ``motion_frames`` frames of a video, encoded as a clip of their own.

    With five frames and a temporal stride of 4, as in the paper, they are 2 latent frames. Its null is
    :func:`omnihuman_core.dropout.null_latents`; a first segment has no motion condition at all.

    Args:
        vae: The model's VAE.
        video: ``(B, 3, T, H, W)`` in [-1, 1], ``T >= motion_frames``.
        motion_frames: ``1 + k * temporal_stride`` frames.

    Returns:
        Latents ``(B, C, m, h, w)``.

    Raises:
        ValueError: the video is shorter than ``motion_frames``, or a size does not fit the VAE.
    """
    if video.ndim != 5 or video.shape[2] < motion_frames:
        raise ValueError(f"video must be (B, 3, T >= {motion_frames}, H, W), got {tuple(video.shape)}")
    vae.latent_spec.motion_latent_frames(motion_frames)
    return MotionCondition(latents=vae.encode(video[:, :, -motion_frames:]))
