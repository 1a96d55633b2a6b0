"""The constants that normalise a VAE's latents, measured on whole clips at constant memory for pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from omnihuman_core.contracts import LatentSpec
from omnihuman_train.data.cached import Shards, bucket_folders, shard_paths
from omnihuman_train.data.clips import from_bytes

# Pixels of the pieces that a clip is encoded in; the small shape takes its clips whole.
_PIECE_PIXELS = 2**20


@torch.no_grad()
def latent_statistics(
    vae: Any, clips: Iterable[Tensor], *, precision: Literal["bf16", "fp32"] = "fp32"
) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel of the latents before their normalisation, ``(C,)`` each, on the CPU.

    The latents of all clips are held at once, in fp32; of their pixels, a piece of one clip is on the VAE's device.

    Args:
        vae: The VAE, with ``encode_stream`` and the buffers ``latents_mean`` and ``latents_std``; used on the device
            that it is on.
        clips: uint8 ``(3, T, H, W)``; frames at the end that no latent frame covers are left out.
        precision: ``bf16`` runs the VAE under autocast.

    Raises:
        ValueError: there are no clips.
    """
    device, values = vae.latents_mean.device, []
    mean, std = vae.latents_mean.float().cpu(), vae.latents_std.float().cpu()
    for clip in clips:
        pieces = (from_bytes(piece[None].contiguous().to(device)) for piece in _pieces(clip, vae.latent_spec))
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            latents = [piece.float().cpu() for piece in vae.encode_stream(pieces)]
        rows = torch.cat(latents, dim=2).movedim(1, -1).flatten(0, -2)  # (t * h * w, C)
        # What the VAE's present constants do is undone: nothing, for one whose latents were never measured.
        values.append(rows * std + mean)
    if not values:
        raise ValueError("no clip can be read to measure the latents on; run data check")
    stacked = torch.cat(values)
    return stacked.mean(0), stacked.std(0)


def rendered_clips(folder: Path, *, count: int = 32) -> Iterator[Tensor]:
    """The first ``count`` rendered clips of every size bucket in ``folder``, uint8 ``(3, T, H, W)``."""
    for bucket in bucket_folders(folder):
        yield from Shards(shard_paths(bucket)[:1], ("video",)).tensors["video"][:count]


def _pieces(clip: Tensor, spec: LatentSpec) -> Iterator[Tensor]:
    """Consecutive pieces of a clip ``(3, T, H, W)`` as a VAE's stream takes them: one more frame in the first."""
    stride = spec.temporal_stride
    stop = clip.shape[1] - (clip.shape[1] - 1) % stride
    step = stride * max(1, _PIECE_PIXELS // (clip.shape[2] * clip.shape[3] * stride))
    bounds = [0, *range(1 + step, stop, step), stop]
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        yield clip[:, first:last]
