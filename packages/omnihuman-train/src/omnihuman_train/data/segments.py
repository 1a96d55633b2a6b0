"""What a step takes of encoded clips beside their latents: which frames, and the skeletons that its samples see."""

from __future__ import annotations

import torch
from torch import Tensor

from omnihuman_core.contracts import PoseExtractor
from omnihuman_train.config import SegmentConfig


def draw_window(segment: SegmentConfig, latent_frames: int, generator: torch.Generator) -> tuple[int, int]:
    """First latent frame of the segment that a step takes of clips of ``latent_frames``, and its motion latents."""
    continuing = bool(torch.rand((), generator=generator) < segment.continuing_ratio)
    latest = latent_frames - segment.latent_frames
    # A continuing segment never holds latent frame 0, which covers one pixel frame and the others several.
    start = int(torch.randint(1, latest + 1, (), generator=generator)) if continuing and latest else 0
    return start, segment.motion_latents if continuing else 0


def skeleton_maps(extractor: PoseExtractor, keypoints: Tensor, size: tuple[int, int]) -> Tensor | None:
    """Maps ``(N, 3, T, H, W)`` of keypoints ``(N, T, 133, 3)``; None where there are no samples.

    Args:
        extractor: Draws the maps of one sample.
        keypoints: Of the samples that keep their pose.
        size: Height and width in pixels.
    """
    if not len(keypoints):
        return None
    return torch.stack([extractor.extract(points, size=size) for points in keypoints.float()])
