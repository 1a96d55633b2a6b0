"""Everything of a clip that does not change while the backbone trains, computed once: latents and audio features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnihuman_core.contracts import LatentSpec, VideoVAE
from omnihuman_train.data.cached import Sample, Shards, shard_paths, write_shard
from omnihuman_train.data.clips import from_bytes

_KEPT = ("keypoints", "mouth_open", "has_audio", "has_pose")


@torch.no_grad()
def encode_clips(
    clips: Path, folder: Path, vae: VideoVAE, audio_extractor: Any, *, fps: float, progress: Callable[[int], None]
) -> None:
    """Turn rendered clips into training samples, shard by shard; shards that are there stay.

    Each sample holds ``latents`` (C, t, h, w) and ``reference`` (C, 1, h, w) in bf16, ``audio`` (T, layers, D) in
    float16, ``mouth_region`` and ``hand_region`` (t, h, w) bool, and the clip's keypoints, truth, flags and caption.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in shard_paths(clips):
        shard = Shards([path])
        if not (folder / path.name).exists():
            write_shard(folder / path.name, [_encode(shard, i, vae, audio_extractor, fps) for i in range(len(shard))])
        progress(len(shard))


def _encode(shard: Shards, index: int, vae: VideoVAE, audio_extractor: Any, fps: float) -> Sample:
    row = {key: value[index] for key, value in shard.tensors.items()}
    video = from_bytes(row["video"])[None]  # (1, 3, T, H, W)
    with torch.autocast("cpu", torch.bfloat16):
        latents = vae.encode(video)[0]
        reference = vae.encode(from_bytes(row["reference"])[None])[0]
    features = audio_extractor.extract(row["waveform"].float()[None])
    audio = audio_extractor.align(features, fps=fps, num_frames=video.shape[2])[0]
    spec, size = vae.latent_spec, video.shape[-2:]
    return {
        "latents": latents.bfloat16(),
        "reference": reference.bfloat16(),
        "audio": audio.half(),
        "mouth_region": latent_region(row["mouth_box"], spec, *size),
        "hand_region": latent_region(hand_boxes(row["hands"]), spec, *size),
        **{key: row[key] for key in _KEPT},
        "caption": shard.texts["caption"][index],
    }


def hand_boxes(hands: Tensor, margin: float = 0.06) -> Tensor:
    """Boxes ``(T, 4, 4)`` in [0, 1] round the visible hands ``(T, 2, 2, 3)``; no area where a hand is not visible."""
    points = hands.flatten(1, 2)  # (T, 4, 3)
    return torch.cat([points[..., :2] - margin, points[..., :2] + margin], -1) * points[..., 2:]


def latent_region(boxes: Tensor, spec: LatentSpec, height: int, width: int) -> Tensor:
    """Latent positions that any of the boxes touches in any frame behind them.

    Args:
        boxes: ``(T, P, 4)`` as ``x0, y0, x1, y1`` in [0, 1]; a box without area marks nothing.
        spec: Latent arithmetic.
        height: Pixel height of the video.
        width: Pixel width of the video.

    Returns:
        ``(t, h, w)`` bool.
    """
    pixels = box_mask(boxes, *spec.latent_size(height, width))
    frames = range(spec.latent_frames(len(boxes)))
    return torch.stack([pixels[list(spec.frame_range(i))].any(0) for i in frames])


def box_mask(boxes: Tensor, height: int, width: int) -> Tensor:
    """Cells of a ``height`` x ``width`` grid that boxes ``(T, P, 4)`` in [0, 1] touch, ``(T, height, width)`` bool."""
    x0, y0, x1, y1 = boxes.unbind(-1)  # (T, P)
    left, right = torch.arange(width) / width, torch.arange(1, width + 1) / width
    top, bottom = torch.arange(height) / height, torch.arange(1, height + 1) / height
    across = (left < x1[..., None]) & (right > x0[..., None])  # (T, P, width)
    down = (top < y1[..., None]) & (bottom > y0[..., None])  # (T, P, height)
    there = ((x1 > x0) & (y1 > y0))[..., None, None]
    return (there & down[..., :, None] & across[..., None, :]).any(1)
