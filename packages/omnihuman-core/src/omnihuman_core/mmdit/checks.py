"""What the MMDiT refuses beyond what its spec says, in one line each."""

from __future__ import annotations

from torch import Tensor

from omnihuman_core.contracts import Conditioning
from omnihuman_core.mmdit.config import MMDiTConfig


def check_inputs(config: MMDiTConfig, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> None:
    """Raise ``ValueError`` where sizes of the conditions do not fit the latents or the architecture."""
    batch, channels, _, *size = latents.shape
    if tuple(sigma.shape) != (batch,):
        raise ValueError(f"sigma must have shape ({batch},), one level per sample of latents, got {tuple(sigma.shape)}")
    for name, part in conditioning.parts().items():
        if part.batch_size != batch:
            raise ValueError(f"{name} condition has batch size {part.batch_size}, latents have {batch}")
    if conditioning.pose is not None and list(conditioning.pose.features.shape[3:]) != size:
        raise ValueError(
            f"pose.features must have the latents' size {size}, got {conditioning.pose.features.shape[3:]}"
        )
    if conditioning.motion is not None:
        clean = conditioning.motion.latents
        if clean.shape[1] != channels or list(clean.shape[3:]) != size or clean.shape[2] % config.patch_size[0]:
            raise ValueError(
                f"motion.latents must be (B, {channels}, m, {size[0]}, {size[1]}) with m a multiple of "
                f"{config.patch_size[0]}, got {tuple(clean.shape)}"
            )
    if conditioning.reference is not None:
        picture = conditioning.reference.latents
        crooked = any(side % patch for side, patch in zip(picture.shape[2:], config.patch_size, strict=True))
        if picture.shape[1] != channels or crooked:
            raise ValueError(
                f"reference.latents must have {channels} channels and (r, h, w) in multiples of {config.patch_size}, "
                f"got {tuple(picture.shape)}"
            )
    text = conditioning.text
    if text is not None and config.pooled_dim is not None:
        width = None if text.pooled is None else text.pooled.shape[-1]
        if width != config.pooled_dim:
            raise ValueError(f"text.pooled must be a vector of width {config.pooled_dim} per sample, got {width}")
