"""Frozen Whisper encoder states, for sound of any length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from omnihuman_conditions.audio.extractor import AudioExtractor
from omnihuman_conditions.audio.loudness import normalise_loudness
from omnihuman_conditions.audio.media import check_waveform
from omnihuman_conditions.audio.separation import VocalSeparator, VoiceIsolation
from omnihuman_conditions.pretrained import WeightDtype, check_dtype, load_pretrained, load_processor
from omnihuman_core.contracts.extractor import SAMPLE_RATE, AudioFeatures


@dataclass(frozen=True, kw_only=True)
class WhisperConfig:
    """Settings of a :class:`WhisperExtractor`.

    Attributes:
        path: Local directory of a Whisper model in the transformers layout, with safetensors weights.
        layers: Hidden states to return, 0 = input of the first encoder layer, in increasing order. The last one of a
            model is layer-normed, as in transformers.
        loudness_db: Speech-active level that every voice is brought to, or None to leave it alone.
        quiet_db: Active level below which a waveform is taken for noise and amplified less and less.
        context_seconds: Sound that a window hears to either side of the states taken from it.
        dtype: Precision of the weights.
    """

    path: str
    layers: tuple[int, ...]
    loudness_db: float | None
    quiet_db: float
    context_seconds: float
    dtype: WeightDtype

    def __post_init__(self) -> None:
        # Configs read from TOML carry lists.
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers or sorted(set(self.layers)) != list(self.layers) or self.layers[0] < 0:
            raise ValueError(f"WhisperConfig.layers must be increasing, not negative and not empty, got {self.layers}")
        if self.context_seconds < 0:
            raise ValueError(f"WhisperConfig.context_seconds must not be negative, got {self.context_seconds}")
        check_dtype("WhisperConfig.dtype", self.dtype)

    @classmethod
    def base(cls, path: str, *, layers: tuple[int, ...]) -> Self:
        """Windows that overlap by 2 s on either side, voices at -23 dB."""
        return cls(path=path, layers=layers, loudness_db=-23.0, quiet_db=-45.0, context_seconds=2.0, dtype="float32")


class WhisperExtractor(AudioExtractor):
    """Chosen hidden states of a Whisper encoder, 50 a second.

    The encoder always hears a window of fixed length (30 s in every public model), padded with silence. Longer sound
    is heard in overlapping windows; the states near a cut come from the window that heard them with
    ``context_seconds`` on either side. State ``j`` stands at ``j / 50`` seconds.
    """

    config_class = WhisperConfig

    def __init__(self, config: WhisperConfig, separator: VocalSeparator | None = None) -> None:
        """Load the encoder; nothing is downloaded.

        Args:
            config: Settings.
            separator: Takes the voice out of music or noise first; where it fails, the raw voice is used.

        Raises:
            ValueError: the directory is missing, holds another model, incomplete or damaged weights, or fewer layers;
                or the context does not fit the window.
        """
        self.config = config
        self._isolate = VoiceIsolation(separator)
        self._encoder = _load_encoder(config)
        self._states = int(self._encoder.config.max_source_positions)
        self._mel = _mel_extractor(config.path, self._encoder.config.num_mel_bins, self._states)
        self._context = round(config.context_seconds * self.rate)
        if 2 * self._context >= self._states:
            raise ValueError(
                f"WhisperConfig.context_seconds must be below half the window of {self._states / self.rate:g} s, "
                f"got {config.context_seconds}"
            )

    @property
    def rate(self) -> float:
        """States per second (Hz): the second convolution halves the rate of the mel windows."""
        return SAMPLE_RATE / self._hop

    @torch.no_grad()
    def extract(self, raw: Tensor) -> AudioFeatures:
        """States of waveforms ``(B, samples)`` at 16 kHz in [-1, 1]: ``(B, n, layers, D)``, 50 a second.

        Raises:
            ValueError: the waveform has another shape, no sample, or samples that are not finite.
        """
        check_waveform(raw)
        voice = self._isolate(raw.float(), sample_rate=SAMPLE_RATE)
        if self.config.loudness_db is not None:
            voice = normalise_loudness(
                voice, sample_rate=SAMPLE_RATE, target_db=self.config.loudness_db, quiet_db=self.config.quiet_db
            )
        self._encoder.to(voice.device)
        total = -(-voice.shape[1] // self._hop)
        pieces = []
        # States [kept, start + window - context) of each window; the last one keeps all it has.
        start = kept = 0
        while kept < total:
            end = total if start + self._states >= total else start + self._states - self._context
            heard = voice[:, start * self._hop : (start + self._states) * self._hop]
            pieces.append(self._hear(heard)[:, kept - start : end - start])
            start, kept = end - self._context, end
        return AudioFeatures(values=torch.cat(pieces, dim=1).float(), rate=self.rate, offset=0.0)

    @property
    def _hop(self) -> int:
        return 2 * int(self._mel.hop_length)

    def _hear(self, heard: Tensor) -> Tensor:
        mel = self._mel(list(heard.cpu().numpy()), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        mel = mel.to(device=heard.device, dtype=self._encoder.conv1.weight.dtype)
        hidden = self._encoder(mel, output_hidden_states=True).hidden_states
        return torch.stack([hidden[layer] for layer in self.config.layers], dim=2)  # (B, window, layers, D)


def _load_encoder(config: WhisperConfig) -> Any:
    last_state, depth = config.layers[-1], 0

    def shorten(settings: Any) -> None:
        nonlocal depth
        depth = settings.encoder_layers
        # transformers records hidden states at its layers, so that one layer stays even for state 0.
        settings.encoder_layers = min(depth, max(last_state, 1))
        settings.decoder_layers = 0

    model = load_pretrained(
        config.path,
        "whisper",
        {"whisper": "WhisperModel"},
        extra="whisper",
        dtype=config.dtype,
        adjust=shorten,
    )
    if last_state > depth:
        raise ValueError(
            f"WhisperConfig.layers asks for hidden state {last_state}, the encoder in {config.path} ends at {depth}"
        )
    if last_state < depth:
        model.encoder.layer_norm = nn.Identity()
    return model.encoder


def _mel_extractor(path: str, num_mels: int, states: int) -> Any:
    mel = load_processor(path, "whisper preprocessor", "WhisperFeatureExtractor", extra="whisper")
    if mel.sampling_rate != SAMPLE_RATE:
        raise ValueError(f"whisper model takes {mel.sampling_rate} Hz, only {SAMPLE_RATE} Hz is supported: {path}")
    if mel.feature_size != num_mels or mel.nb_max_frames != 2 * states:
        raise ValueError(
            f"whisper preprocessor makes {mel.feature_size} bands and {mel.nb_max_frames} windows, "
            f"the encoder takes {num_mels} and {2 * states}: {path}"
        )
    return mel
