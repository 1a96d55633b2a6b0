"""Loads wav2vec 2.0 and XLS-R models, and what their directory says about the sound they take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from omnihuman_conditions.audio.media import SAMPLE_RATE
from omnihuman_conditions.pretrained import load_pretrained, read_settings

if TYPE_CHECKING:
    from transformers import Wav2Vec2Model


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
