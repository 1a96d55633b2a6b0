"""Patch discriminators for the adversarial term of the VAE objective.

Isola et al., Image-to-Image Translation with Conditional Adversarial Networks, section 3.2.2 (PatchGAN); Miyato et al.,
Spectral Normalization for Generative Adversarial Networks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class PatchDiscriminator(nn.Module):
    """Judges patches of frames, or of short runs of frames.

    Args:
        in_channels: Colour channels.
        width: Channels of the first layer; each layer doubles them.
        num_layers: Layers that halve the picture.
        temporal_kernel: Frames that a convolution sees; 1 judges every frame alone.

    Raises:
        ValueError: a size is not positive, or the temporal kernel is even.
    """

    def __init__(self, *, in_channels: int = 3, width: int = 32, num_layers: int = 3, temporal_kernel: int) -> None:
        super().__init__()
        if min(in_channels, width, num_layers) < 1:
            raise ValueError(
                f"in_channels, width and num_layers must be at least 1, got {in_channels}, {width}, {num_layers}"
            )
        if temporal_kernel < 1 or temporal_kernel % 2 == 0:
            raise ValueError(f"temporal_kernel must be odd, got {temporal_kernel}")
        self.num_layers = num_layers
        padding = (temporal_kernel // 2, 1, 1)
        widths = [in_channels, *(width * 2**layer for layer in range(num_layers))]
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv3d(before, after, (temporal_kernel, 4, 4), stride=(1, 2, 2), padding=padding))
            for before, after in zip(widths[:-1], widths[1:], strict=True)
        )
        self.head = spectral_norm(nn.Conv3d(widths[-1], 1, (temporal_kernel, 3, 3), padding=padding))

    def forward(self, video: Tensor) -> Tensor:
        """Logits of the patches of ``(B, 3, T, H, W)``, ``(B, 1, T, H / 2^n, W / 2^n)``; high says real.

        Raises:
            ValueError: the picture is too small for the layers.
        """
        smallest = 2**self.num_layers
        if min(video.shape[-2:]) < smallest:
            raise ValueError(f"height and width must be at least {smallest}, got {tuple(video.shape[-2:])}")
        for layer in self.layers:
            video = F.leaky_relu(_convolve(layer, video), 0.2)
        return _convolve(self.head, video)


def _convolve(layer: nn.Module, video: Tensor) -> Tensor:
    assert isinstance(layer, nn.Conv3d)
    # Autocast would estimate the singular value in bf16 where it knows matrix-vector products (CUDA).
    with torch.autocast(video.device.type, enabled=False):
        weight = layer.weight
    return F.conv3d(video, weight, layer.bias, layer.stride, layer.padding)


class ImageAndVideoDiscriminator(nn.Module):
    """Judges one frame in ``frame_step`` as a picture, and the whole clip as a video.

    A clip of one frame is judged as a picture alone: it has no motion to judge.

    Args:
        width: Channels of the first layer of each.
        num_layers: Layers of each that halve the picture.
        frame_step: Distance between the frames judged as pictures.
    """

    def __init__(self, *, width: int = 32, num_layers: int = 3, frame_step: int = 4) -> None:
        super().__init__()
        if frame_step < 1:
            raise ValueError(f"frame_step must be at least 1, got {frame_step}")
        self.frame_step = frame_step
        self.image = PatchDiscriminator(width=width, num_layers=num_layers, temporal_kernel=1)
        self.video = PatchDiscriminator(width=width, num_layers=num_layers, temporal_kernel=3)

    def forward(self, video: Tensor) -> tuple[Tensor, ...]:
        """Logits of the pictures ``(B * frames, 1, 1, h, w)`` and, for T > 1, of the video ``(B, 1, T, h, w)``."""
        frames = rearrange(video[:, :, :: self.frame_step], "b c t h w -> (b t) c 1 h w")  # (B * T, 3, 1, H, W)
        return (self.image(frames), self.video(video)) if video.shape[2] > 1 else (self.image(frames),)
