"""All arithmetic between pixels and latents (paper section 3.1: a causal 3D VAE at native resolution).

A causal video VAE maps ``T`` pixel frames to ``1 + (T - 1) / temporal_stride`` latent frames: the first latent frame
covers one pixel frame, each later one covers ``temporal_stride`` of them. Nobody else in the stack divides by a stride.

Stability: 1 (a change of meaning raises the major version of the contract).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LatentSpec:
    """Shape of the latents of one VAE.

    Attributes:
        channels: Latent channels ``C``.
        temporal_stride: Pixel frames behind each latent frame but the first.
        spatial_stride: Pixels behind one latent position along height and along width.
    """

    channels: int
    temporal_stride: int
    spatial_stride: int

    def __post_init__(self) -> None:
        for name in ("channels", "temporal_stride", "spatial_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"LatentSpec.{name} must be at least 1, got {getattr(self, name)}")

    def latent_frames(self, frames: int) -> int:
        """Latent frames ``t`` behind ``frames`` pixel frames ``T``.

        Raises:
            ValueError: ``frames`` is not ``1 + k * temporal_stride``.
        """
        if frames < 1 or (frames - 1) % self.temporal_stride:
            raise ValueError(
                f"frames must be 1 + a multiple of {self.temporal_stride}, got {frames}; "
                f"the next length that fits is {self.fit_frames(frames)}"
            )
        return 1 + (frames - 1) // self.temporal_stride

    def pixel_frames(self, latent_frames: int) -> int:
        """Pixel frames ``T`` behind ``latent_frames`` latent frames that start a clip."""
        if latent_frames < 1:
            raise ValueError(f"latent_frames must be at least 1, got {latent_frames}")
        return 1 + (latent_frames - 1) * self.temporal_stride

    def fit_frames(self, frames: int) -> int:
        """Smallest encodable length that is at least ``frames``."""
        groups = -(-max(frames - 1, 0) // self.temporal_stride)
        return 1 + groups * self.temporal_stride

    def motion_latent_frames(self, motion_frames: int) -> int:
        """Latent frames that carry the last ``motion_frames`` pixel frames of a segment (paper: 5 -> 2)."""
        return self.latent_frames(motion_frames)

    def frame_range(self, latent_frame: int) -> range:
        """Pixel frames that latent frame ``latent_frame`` of a clip covers."""
        if latent_frame < 0:
            raise ValueError(f"latent_frame must not be negative, got {latent_frame}")
        if latent_frame == 0:
            return range(1)
        start = 1 + (latent_frame - 1) * self.temporal_stride
        return range(start, start + self.temporal_stride)

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        """Latent ``(h, w)`` of a picture of ``height`` x ``width`` pixels.

        Raises:
            ValueError: a side is not a multiple of ``spatial_stride``.
        """
        for name, side in (("height", height), ("width", width)):
            if side < self.spatial_stride or side % self.spatial_stride:
                raise ValueError(f"{name} must be a multiple of {self.spatial_stride}, got {side}")
        return height // self.spatial_stride, width // self.spatial_stride

    def pixel_size(self, height: int, width: int) -> tuple[int, int]:
        """Pixels ``(H, W)`` behind latents of ``height`` x ``width`` positions."""
        return height * self.spatial_stride, width * self.spatial_stride

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """``(C, t, h, w)`` of the latents of a video of ``(T, H, W)`` pixels."""
        return (self.channels, self.latent_frames(frames), *self.latent_size(height, width))
