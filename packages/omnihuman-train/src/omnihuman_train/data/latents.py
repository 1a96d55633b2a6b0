"""Everything of a clip that does not change while the backbone trains, computed once: latents and audio features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from omnihuman_core.contracts import AudioExtractor, VideoVAE
from omnihuman_train.data.cached import Sample, Shards, shard_paths, write_shard
from omnihuman_train.data.clips import from_bytes
from omnihuman_train.data.regions import hand_boxes, latent_region

_KEPT = ("keypoints", "mouth_open", "has_audio", "has_pose")


@torch.no_grad()
def encode_clips(
    clips: Path,
    folder: Path,
    vae: VideoVAE,
    audio_extractor: AudioExtractor,
    *,
    fps: float,
    progress: Callable[[int], None],
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


def _encode(shard: Shards, index: int, vae: VideoVAE, audio_extractor: AudioExtractor, fps: float) -> Sample:
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
