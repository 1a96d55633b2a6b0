"""Named architectures."""

from __future__ import annotations

from omnihuman_vae.config import CausalVAEConfig


def tiny() -> CausalVAEConfig:
    """4x8x8 with 16 channels, for small synthetic video on a CPU: 4x4x4 tubelets and one 2x2 step."""
    return CausalVAEConfig(
        in_channels=3,
        latent_channels=16,
        patch_size=(4, 4, 4),
        channels=(96, 224),
        encoder_blocks=(2, 1),
        decoder_blocks=(4, 3),
        spatial_downsample=(True,),
        temporal_downsample=(False,),
        temporal_kernel=3,
        convolution="factored",
        tubelet_skip=True,
        norm_eps=1e-6,
        initial_logvar=-5.0,
    )


def base() -> CausalVAEConfig:
    """4x8x8 with 16 channels and full causal convolutions from the pixels on, sized for natural video on a GPU."""
    return CausalVAEConfig(
        in_channels=3,
        latent_channels=16,
        patch_size=(1, 1, 1),
        channels=(96, 192, 384, 384),
        encoder_blocks=(2, 2, 2, 2),
        decoder_blocks=(3, 3, 3, 3),
        spatial_downsample=(True, True, True),
        temporal_downsample=(False, True, True),
        temporal_kernel=3,
        convolution="full",
        tubelet_skip=False,
        norm_eps=1e-6,
        initial_logvar=-5.0,
    )
