"""From audio states to video frames to latent frames (paper section 3.2: wav2vec features aligned with the video).

All three functions are pure index arithmetic along time; every later axis rides along.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from omnihuman_core.contracts.extractor import AudioFeatures


def align(features: AudioFeatures, *, fps: float, num_frames: int, first_frame: int = 0) -> Tensor:
    """Audio states at the centres of video frames, by linear interpolation between time stamps.

    State ``j`` stands at ``offset + j / rate`` seconds, frame ``i`` at ``(i + 0.5) / fps``. Frames before the first or
    after the last state take that state, so pad the *waveform* with silence where a video outlasts its sound.

    Args:
        features: States ``(B, n, layers, D)`` at their own rate.
        fps: Video frames per second.
        num_frames: Frames ``T`` to return.
        first_frame: Index of the first frame returned, for a segment of a long video.

    Returns:
        ``(B, T, layers, D)``.

    Raises:
        ValueError: no state, or ``fps`` or ``num_frames`` is not positive.
    """
    if features.values.ndim != 4 or features.values.shape[1] < 1:
        raise ValueError(f"audio features must be (B, n >= 1, layers, D), got {tuple(features.values.shape)}")
    if not fps > 0 or num_frames < 1 or first_frame < 0:
        raise ValueError(
            f"fps and num_frames must be positive and first_frame not negative, got fps={fps}, "
            f"num_frames={num_frames}, first_frame={first_frame}"
        )
    values = features.values
    last = values.shape[1] - 1
    # float64: at 10 minutes and 50 Hz a float32 position is off by up to 2e-3 of a state.
    frames = torch.arange(first_frame, first_frame + num_frames, dtype=torch.float64)
    position = (((frames + 0.5) / fps - features.offset) * features.rate).clamp(0, last)
    left = position.floor().clamp(max=max(last - 1, 0)).long()
    right = (left + 1).clamp(max=last)
    weight = (position - left).to(device=values.device, dtype=values.dtype)[:, None, None]
    left, right = left.to(values.device), right.to(values.device)
    return torch.lerp(values[:, left], values[:, right], weight)  # (B, T, layers, D)


def adjacent_frames(x: Tensor, window: int) -> Tensor:
    """The ``window`` frames centred on each frame; edge frames are repeated.

    Args:
        x: ``(B, T, ...)``.
        window: Odd number of frames.

    Returns:
        ``(B, T, window, ...)``, entry ``[:, i, j]`` is frame ``i + j - window // 2``.

    Raises:
        ValueError: ``window`` is even or not positive.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be an odd number of frames, got {window}")
    num_frames = x.shape[1]
    centre = torch.arange(num_frames, device=x.device)
    shift = torch.arange(window, device=x.device) - window // 2
    return x[:, (centre[:, None] + shift).clamp(0, num_frames - 1)]  # (B, T, window, ...)


def group_to_latent_frames(x: Tensor, temporal_stride: int) -> Tensor:
    """Group pixel frames by the latent frame that covers them: 1, s, s, ... for stride s.

    The first latent frame covers one pixel frame, which is repeated to fill its group.

    Args:
        x: ``(B, T, ...)`` with ``T = 1 + k * temporal_stride``.
        temporal_stride: Pixel frames ``s`` behind each latent frame but the first.

    Returns:
        ``(B, t, s, ...)`` with ``t = 1 + k``.

    Raises:
        ValueError: ``T`` is not ``1 + k * temporal_stride``.
    """
    if (x.shape[1] - 1) % temporal_stride:
        raise ValueError(f"frames must be 1 + a multiple of {temporal_stride}, got {x.shape[1]}")
    first = x[:, :1].expand(-1, temporal_stride - 1, *x.shape[2:])
    return rearrange(torch.cat([first, x], dim=1), "b (t s) ... -> b t s ...", s=temporal_stride)  # (B, t, s, ...)
