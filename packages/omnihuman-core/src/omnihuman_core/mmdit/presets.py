"""Named architectures."""

from __future__ import annotations

from dataclasses import replace

from omnihuman_core.mmdit.config import MMDiTConfig, TextGroups


def tiny() -> MMDiTConfig:
    """The shipped small model: trains from scratch on two CPU cores."""
    return MMDiTConfig(
        latent_channels=16,
        patch_size=(1, 2, 2),
        hidden_size=256,
        num_heads=4,
        num_double_blocks=2,
        num_single_blocks=5,
        mlp_ratio=3.0,
        rope_dims=(16, 24, 24),
        rope_theta=256.0,
        modulation="shared",
        clean_modulation="zero",
        segment_embedding=True,
        text_dim=128,
        text_refiner_depth=0,
        text_groups=None,
        pooled_dim=128,
        embedded_guidance=None,
        audio_dim=128,
        audio_blocks=tuple(range(7)),
        pose_channels=16,
        reference=True,
        reference_slot=0,
        motion=True,
        norm_eps=1e-6,
    )


def small() -> MMDiTConfig:
    """A model for one GPU: 128x128 to 256x256 pixels."""
    return MMDiTConfig(
        latent_channels=16,
        patch_size=(1, 2, 2),
        hidden_size=768,
        num_heads=12,
        num_double_blocks=4,
        num_single_blocks=12,
        mlp_ratio=4.0,
        rope_dims=(16, 24, 24),
        rope_theta=256.0,
        modulation="shared",
        clean_modulation="zero",
        segment_embedding=True,
        text_dim=512,
        text_refiner_depth=0,
        text_groups=None,
        pooled_dim=512,
        embedded_guidance=None,
        audio_dim=512,
        audio_blocks=tuple(range(16)),
        pose_channels=32,
        reference=True,
        reference_slot=0,
        motion=True,
        norm_eps=1e-6,
    )


def hunyuan_video(*, audio_dim: int | None = None, pose_channels: int | None = None) -> MMDiTConfig:
    """HunyuanVideo's shapes, so that its public weights load; audio and pose paths where asked for.

    Args:
        audio_dim: Width of audio tokens, for cross-attention in every block; None leaves audio out.
        pose_channels: Channels of pose features; None leaves pose out.
    """
    return MMDiTConfig(
        latent_channels=16,
        patch_size=(1, 2, 2),
        hidden_size=3072,
        num_heads=24,
        num_double_blocks=20,
        num_single_blocks=40,
        mlp_ratio=4.0,
        rope_dims=(16, 56, 56),
        rope_theta=256.0,
        modulation="per_block",
        clean_modulation="zero",
        segment_embedding=False,
        text_dim=4096,
        text_refiner_depth=2,
        text_groups=None,
        pooled_dim=768,
        embedded_guidance=6.0,
        audio_dim=audio_dim,
        audio_blocks=() if audio_dim is None else tuple(range(60)),
        pose_channels=pose_channels,
        reference=True,
        reference_slot=0,
        motion=True,
        norm_eps=1e-6,
    )


def hunyuan_video_15() -> MMDiTConfig:
    """HunyuanVideo-1.5's shapes, so that its public weights load.

    Its picture latents and their mask come as channels, which are pose features to us.
    """
    return replace(
        hunyuan_video(pose_channels=33),
        latent_channels=32,
        patch_size=(1, 1, 1),
        hidden_size=2048,
        num_heads=16,
        num_double_blocks=54,
        num_single_blocks=0,
        text_dim=3584,
        text_groups=TextGroups(prompt_tokens=1000, glyph_tokens=256, glyph_dim=1472, picture_dim=1152),
        pooled_dim=None,
        embedded_guidance=None,
    )
