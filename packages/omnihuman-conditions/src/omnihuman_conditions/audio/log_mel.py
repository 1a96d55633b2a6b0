"""Log-mel states for the small model: an audio extractor without weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from einops import rearrange
from torch import Tensor

from omnihuman_conditions.audio.extractor import AudioExtractor
from omnihuman_conditions.audio.loudness import normalise_loudness
from omnihuman_conditions.audio.media import check_waveform
from omnihuman_core.contracts.extractor import AudioFeatures


@dataclass(frozen=True, kw_only=True)
class LogMelConfig:
    """Settings of a :class:`LogMelExtractor`.

    Attributes:
        sample_rate: Samples per second (Hz).
        window: Samples of one analysis window.
        hop: Samples between two windows.
        fft_size: Length of the Fourier transform, at least ``window``.
        num_mels: Mel bands.
        min_hz: Lower edge of the first band.
        max_hz: Upper edge of the last band.
        stack: Windows stacked into one state.
        loudness_db: Speech-active level that every voice is brought to, or None to leave it alone.
        quiet_db: Active level below which a waveform is taken for noise and amplified less and less.
        floor_db: Level added to every band; what is fainter looks like silence.
        mean_db: Band level that becomes 0.
        std_db: Band levels that become 1 above or below it.
    """

    sample_rate: int
    window: int
    hop: int
    fft_size: int
    num_mels: int
    min_hz: float
    max_hz: float
    stack: int
    loudness_db: float | None
    quiet_db: float
    floor_db: float
    mean_db: float
    std_db: float

    def __post_init__(self) -> None:
        for name in ("sample_rate", "window", "hop", "num_mels", "stack"):
            if getattr(self, name) < 1:
                raise ValueError(f"LogMelConfig.{name} must be at least 1, got {getattr(self, name)}")
        if self.fft_size < self.window or self.window < self.hop:
            raise ValueError(
                "LogMelConfig needs hop <= window <= fft_size, "
                f"got hop={self.hop}, window={self.window}, fft_size={self.fft_size}"
            )
        if not 0 <= self.min_hz < self.max_hz <= self.sample_rate / 2:
            raise ValueError(
                f"LogMelConfig needs 0 <= min_hz < max_hz <= {self.sample_rate / 2}, "
                f"got min_hz={self.min_hz}, max_hz={self.max_hz}"
            )
        if self.std_db <= 0:
            raise ValueError(f"LogMelConfig.std_db must be positive, got {self.std_db}")

    @classmethod
    def tiny(cls) -> Self:
        """40 bands at 100 Hz, 4 stacked: 25 states of width 160 a second, centred on the frames of a 25 fps video."""
        return cls(
            sample_rate=16000,
            window=400,
            hop=160,
            fft_size=512,
            num_mels=40,
            min_hz=50.0,
            max_hz=7600.0,
            stack=4,
            loudness_db=-23.0,
            quiet_db=-45.0,
            floor_db=-80.0,
            mean_db=-50.0,
            std_db=16.0,
        )


def mel_filters(*, num_mels: int, fft_size: int, sample_rate: int, min_hz: float, max_hz: float) -> Tensor:
    """Triangular filters of peak 1, evenly spaced on the mel scale ``2595 log10(1 + f / 700)``.

    Returns:
        ``(fft_size // 2 + 1, num_mels)``.
    """
    low, high = (2595 * math.log10(1 + hz / 700) for hz in (min_hz, max_hz))
    edges = 700 * (10 ** (torch.linspace(low, high, num_mels + 2, dtype=torch.float64) / 2595) - 1)
    bins = torch.linspace(0, sample_rate / 2, fft_size // 2 + 1, dtype=torch.float64)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0).float()  # (bins, num_mels)


class LogMelExtractor(AudioExtractor):
    """Stacked log-mel states with a fixed normalisation.

    State ``i`` stacks ``stack`` windows and is centred at ``(i + 0.5) * stack * hop`` samples. A full-scale sine has a
    band level of about 0 dB.

    Example:
        >>> extractor = LogMelExtractor(LogMelConfig.tiny())
        >>> features = extractor.extract(torch.zeros(1, 16000))
        >>> features.values.shape, features.rate, features.offset
        (torch.Size([1, 25, 1, 160]), 25.0, 0.02)
    """

    config_class = LogMelConfig
    presets: ClassVar[dict[str, Callable[[], LogMelConfig]]] = {"tiny": LogMelConfig.tiny}

    def __init__(self, config: LogMelConfig) -> None:
        self.config = config
        self._filters = mel_filters(
            num_mels=config.num_mels,
            fft_size=config.fft_size,
            sample_rate=config.sample_rate,
            min_hz=config.min_hz,
            max_hz=config.max_hz,
        )

    @property
    def sample_rate(self) -> int:
        """Samples per second (Hz) of the waveforms it takes."""
        return self.config.sample_rate

    @torch.no_grad()
    def extract(self, raw: Tensor) -> AudioFeatures:
        """States of waveforms ``(B, samples)`` in [-1, 1]; ``n`` covers the last, possibly partial, state.

        Raises:
            ValueError: the waveform has another shape or no sample.
        """
        check_waveform(raw)
        config = self.config
        waveform = raw.float()
        if config.loudness_db is not None:
            waveform = normalise_loudness(
                waveform,
                sample_rate=config.sample_rate,
                target_db=config.loudness_db,
                quiet_db=config.quiet_db,
            )
        span = config.stack * config.hop
        states = -(-waveform.shape[1] // span)
        # Window j is centred on the middle of hop j.
        left = (config.window - config.hop) // 2
        right = config.window - config.hop - left + states * span - waveform.shape[1]
        padded = torch.nn.functional.pad(waveform, (left, right))
        window = torch.hann_window(config.window, device=waveform.device, dtype=waveform.dtype)
        frames = padded.unfold(-1, config.window, config.hop) * window  # (B, n * stack, window)
        power = torch.fft.rfft(frames, n=config.fft_size).abs().square() * (2 / window.sum()) ** 2
        bands = power @ self._filters.to(power.device)  # (B, n * stack, mels)
        level_db = 10 * torch.log10(bands + 10 ** (config.floor_db / 10))
        values = (level_db - config.mean_db) / config.std_db
        rate = config.sample_rate / span
        values = rearrange(values, "b (n s) m -> b n 1 (s m)", s=config.stack)  # (B, n, 1, stack * mels)
        return AudioFeatures(values=values, rate=rate, offset=0.5 / rate)
