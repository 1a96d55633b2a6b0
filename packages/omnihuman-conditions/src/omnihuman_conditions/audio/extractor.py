"""What every audio extractor does besides extracting: reads files, aligns its states to video frames, makes silence."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from omnihuman_conditions.audio.alignment import align
from omnihuman_conditions.audio.media import MAX_SECONDS, load_waveform
from omnihuman_core.contracts.extractor import SAMPLE_RATE, AudioFeatures


class AudioExtractor:
    """Base of the audio extractors, which add ``extract``."""

    @property
    def sample_rate(self) -> int:
        """Samples per second (Hz) of the waveforms it takes."""
        return SAMPLE_RATE

    def load(self, path: str | Path | BinaryIO, *, max_seconds: float = MAX_SECONDS) -> Tensor:
        """Waveform ``(samples,)`` of a media file at this extractor's rate; see :func:`load_waveform`."""
        return load_waveform(path, sample_rate=self.sample_rate, max_seconds=max_seconds)

    def align(self, features: AudioFeatures, *, fps: float, num_frames: int, first_frame: int = 0) -> Tensor:
        """States at video frame centres, ``(B, T, layers, D)``, interpolated by time stamps."""
        return align(features, fps=fps, num_frames=num_frames, first_frame=first_frame)

    def silence(self, seconds: float) -> Tensor:
        """A silent waveform ``(samples,)``."""
        return torch.zeros(max(1, round(seconds * self.sample_rate)))
