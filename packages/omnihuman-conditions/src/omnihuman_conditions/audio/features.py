"""Frozen audio extractors: log-mel states for the small model, wav2vec 2.0 states for large ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, ClassVar, Self

import torch
from einops import rearrange
from torch import Tensor

from omnihuman_conditions.audio.alignment import align
from omnihuman_conditions.audio.loudness import normalise_loudness
from omnihuman_conditions.audio.media import MAX_SECONDS, SAMPLE_RATE, check_waveform, load_waveform
from omnihuman_conditions.audio.separation import VocalSeparator, VoiceIsolation
from omnihuman_conditions.audio.wav2vec2 import load_wav2vec2, takes_normalised_sound
from omnihuman_core.contracts.encoder import AudioFeatures


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


class LogMelExtractor:
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
        window = torch.hann_window(config.window, device=waveform.device)
        frames = padded.unfold(-1, config.window, config.hop) * window  # (B, n * stack, window)
        power = torch.fft.rfft(frames, n=config.fft_size).abs().square() * (2 / window.sum()) ** 2
        bands = power @ self._filters.to(power.device)  # (B, n * stack, mels)
        level_db = 10 * torch.log10(bands + 10 ** (config.floor_db / 10))
        values = (level_db - config.mean_db) / config.std_db
        rate = config.sample_rate / span
        values = rearrange(values, "b (n s) m -> b n 1 (s m)", s=config.stack)  # (B, n, 1, stack * mels)
        return AudioFeatures(values=values, rate=rate, offset=0.5 / rate)

    def load(self, path: str | Path | BinaryIO, *, max_seconds: float = MAX_SECONDS) -> Tensor:
        """Waveform ``(samples,)`` of a media file at this extractor's rate; see :func:`load_waveform`."""
        return load_waveform(path, sample_rate=self.config.sample_rate, max_seconds=max_seconds)

    def align(self, features: AudioFeatures, *, fps: float, num_frames: int, first_frame: int = 0) -> Tensor:
        """States at video frame centres, ``(B, T, layers, D)``, interpolated by time stamps."""
        return align(features, fps=fps, num_frames=num_frames, first_frame=first_frame)

    def silence(self, seconds: float) -> Tensor:
        """A silent waveform ``(samples,)``."""
        return torch.zeros(max(1, round(seconds * self.config.sample_rate)))


@dataclass(frozen=True, kw_only=True)
class Wav2Vec2Config:
    """Settings of a :class:`Wav2Vec2Extractor`.

    Attributes:
        path: Local directory of a wav2vec 2.0 or XLS-R model in the transformers layout, with safetensors weights.
        layers: Hidden states to return, 0 = input of the first transformer layer, in increasing order.
        loudness: Bring the voice to one speech-active level, so that silence stays faint. Off: the whole waveform to
            zero mean and unit variance where ``preprocessor_config.json`` of the model asks for it, as transformers'
            feature extractor does, and as it is otherwise.
        quiet_db: Active level below which a waveform is taken for noise, when ``loudness`` is on.
        chunk_seconds: Sound that each pass returns states for.
        context_seconds: Sound to either side of it that the pass also hears.
    """

    path: str
    layers: tuple[int, ...]
    loudness: bool
    quiet_db: float
    chunk_seconds: float
    context_seconds: float

    def __post_init__(self) -> None:
        # Configs read from TOML carry lists.
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers or sorted(set(self.layers)) != list(self.layers) or self.layers[0] < 0:
            raise ValueError(f"Wav2Vec2Config.layers must be increasing, not negative and not empty, got {self.layers}")
        if self.chunk_seconds <= 0 or self.context_seconds < 0:
            raise ValueError(
                "Wav2Vec2Config needs chunk_seconds > 0 and context_seconds >= 0, "
                f"got {self.chunk_seconds} and {self.context_seconds}"
            )

    @classmethod
    def base(cls, path: str) -> Self:
        """Four layers spread over a 12-layer model, passes of 20 s with 2 s of context."""
        return cls(
            path=path, layers=(3, 6, 9, 12), loudness=True, quiet_db=-45.0, chunk_seconds=20.0, context_seconds=2.0
        )

    @classmethod
    def large(cls, path: str) -> Self:
        """Four layers spread over a 24-layer model, such as XLS-R, passes of 20 s with 2 s of context."""
        return replace(cls.base(path), layers=(6, 12, 18, 24))


class Wav2Vec2Extractor:
    """Chosen hidden states of a wav2vec 2.0 or XLS-R model, for sound of any length.

    Long sound is heard in overlapping passes, cut on the model's own state grid; the states near a cut come from the
    pass that heard them with ``context_seconds`` on either side. They differ from those of one pass over everything by
    a seam error that the context keeps small but not zero: attention and some models' group norm see the whole pass.

    State ``j`` is centred on the middle of the samples it hears.
    """

    config_class = Wav2Vec2Config

    def __init__(self, config: Wav2Vec2Config, separator: VocalSeparator | None = None) -> None:
        """Load the model up to the last chosen layer; nothing is downloaded.

        Args:
            config: Settings.
            separator: Takes the voice out of music or noise first; where it fails, the raw voice is used.

        Raises:
            ValueError: the directory is missing, holds another model, incomplete or damaged weights, or fewer layers.
        """
        self.config = config
        self._isolate = VoiceIsolation(separator)
        self._model = load_wav2vec2(Path(config.path), last_state=config.layers[-1])
        self._unit_variance = takes_normalised_sound(Path(config.path))
        settings = self._model.config
        self._stride, self._span = 1, 1
        for kernel, stride in zip(settings.conv_kernel, settings.conv_stride, strict=True):
            self._span += (kernel - 1) * self._stride
            self._stride *= stride

    @torch.no_grad()
    def extract(self, raw: Tensor) -> AudioFeatures:
        """States of waveforms ``(B, samples)`` at 16 kHz in [-1, 1]: ``(B, n, layers, D)``, about 50 a second.

        Raises:
            ValueError: the waveform has another shape or no sample.
        """
        check_waveform(raw)
        waveform = self._normalise(self._isolate(raw.float(), sample_rate=SAMPLE_RATE))
        waveform = torch.nn.functional.pad(waveform, (0, max(0, self._span - waveform.shape[1])))
        states = (waveform.shape[1] - self._span) // self._stride + 1
        rate = SAMPLE_RATE / self._stride
        core = max(1, round(self.config.chunk_seconds * rate))
        context = round(self.config.context_seconds * rate)
        self._model.to(waveform.device)
        pieces = []
        for start in range(0, states, core):
            stop = min(start + core, states)
            first, last = max(start - context, 0), min(stop + context, states)
            # Samples behind the last state count too: the group norm of base models takes its statistics over them.
            end = waveform.shape[1] if last == states else (last - 1) * self._stride + self._span
            heard = waveform[:, first * self._stride : end]
            hidden = self._model(heard, output_hidden_states=True).hidden_states
            chosen = torch.stack([hidden[layer] for layer in self.config.layers], dim=2)  # (B, n', layers, D)
            pieces.append(chosen[:, start - first : stop - first])
        offset = (self._span - 1) / 2 / SAMPLE_RATE
        return AudioFeatures(values=torch.cat(pieces, dim=1), rate=rate, offset=offset)

    def load(self, path: str | Path | BinaryIO, *, max_seconds: float = MAX_SECONDS) -> Tensor:
        """Waveform ``(samples,)`` of a media file at 16 kHz; see :func:`load_waveform`."""
        return load_waveform(path, sample_rate=SAMPLE_RATE, max_seconds=max_seconds)

    def align(self, features: AudioFeatures, *, fps: float, num_frames: int, first_frame: int = 0) -> Tensor:
        """States at video frame centres, ``(B, T, layers, D)``, interpolated by time stamps."""
        return align(features, fps=fps, num_frames=num_frames, first_frame=first_frame)

    def silence(self, seconds: float) -> Tensor:
        """A silent waveform ``(samples,)``."""
        return torch.zeros(max(1, round(seconds * SAMPLE_RATE)))

    def _normalise(self, waveform: Tensor) -> Tensor:
        if self.config.loudness:
            # Active speech ends up at the scale that the model was trained on: unit level, or that of a recording.
            target_db = 0.0 if self._unit_variance else -23.0
            return normalise_loudness(
                waveform, sample_rate=SAMPLE_RATE, target_db=target_db, quiet_db=self.config.quiet_db
            )
        if not self._unit_variance:
            return waveform
        mean = waveform.mean(-1, keepdim=True)
        variance = waveform.var(-1, keepdim=True, correction=0)
        return (waveform - mean) / torch.sqrt(variance + 1e-7)
