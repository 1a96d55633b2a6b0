"""Frozen wav2vec 2.0 and XLS-R states, for sound of any length."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from omnihuman_conditions.audio.extractor import AudioExtractor
from omnihuman_conditions.audio.loudness import normalise_loudness
from omnihuman_conditions.audio.media import check_waveform
from omnihuman_conditions.audio.separation import VocalSeparator, VoiceIsolation
from omnihuman_conditions.pretrained import load_pretrained, read_settings
from omnihuman_core.contracts.extractor import SAMPLE_RATE, AudioFeatures

if TYPE_CHECKING:
    from transformers import Wav2Vec2Model


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


class Wav2Vec2Extractor(AudioExtractor):
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


def load_wav2vec2(path: Path, *, last_state: int) -> Wav2Vec2Model:
    """The model in a local directory in the transformers layout, frozen, up to one hidden state.

    Layers behind that state are not loaded, so they cost neither memory nor time.

    Args:
        path: Directory of a wav2vec 2.0 or XLS-R model.
        last_state: Last hidden state wanted; 0 is the input of the first transformer layer.

    Raises:
        ValueError: the directory is missing, holds another model, incomplete or damaged weights, or fewer layers.
    """
    depth = 0

    def shorten(settings: Any) -> None:
        nonlocal depth
        depth = settings.num_hidden_layers
        # transformers records hidden states at its layers, so that one layer stays even for state 0.
        settings.num_hidden_layers = min(depth, max(last_state, 1))
        # An adapter behind the last layer would change the length of the last state alone.
        settings.add_adapter = False

    # Only training masks states; exports without the mask embedding are complete.
    model = load_pretrained(
        path,
        "wav2vec2",
        {"wav2vec2": "Wav2Vec2Model"},
        extra="wav2vec",
        adjust=shorten,
        optional=("masked_spec_embed",),
    )
    if last_state > depth:
        raise ValueError(
            f"Wav2Vec2Config.layers asks for hidden state {last_state}, the model in {path} ends at {depth}"
        )
    # Large models norm the state behind the very last layer only.
    if model.config.do_stable_layer_norm and last_state < depth:
        model.encoder.layer_norm = nn.Identity()
    return model


def takes_normalised_sound(path: Path) -> bool:
    """Whether the model was trained on sound of zero mean and unit variance, as ``preprocessor_config.json`` says.

    Raises:
        ValueError: the model takes another sample rate than 16 kHz.
    """
    settings = read_settings(path / "preprocessor_config.json")
    rate = settings.get("sampling_rate", SAMPLE_RATE)
    if rate != SAMPLE_RATE:
        raise ValueError(f"wav2vec2 model takes {rate} Hz, only {SAMPLE_RATE} Hz is supported: {path}")
    return bool(settings.get("do_normalize", True))
