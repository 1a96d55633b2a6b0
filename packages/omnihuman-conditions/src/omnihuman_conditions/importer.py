"""Reads published audio and text encoders as extractors of a model directory.

The public folder goes with the model as it is, its weights and the settings beside them; the extractor loads it from
there through transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnihuman_conditions.audio.wav2vec2 import Wav2Vec2Config
from omnihuman_conditions.audio.whisper import WhisperConfig
from omnihuman_conditions.language.hunyuan import HunyuanTextConfig, HunyuanTextExtractor
from omnihuman_conditions.language.hunyuan15 import Hunyuan15TextConfig, Hunyuan15TextExtractor
from omnihuman_conditions.language.qwen import Qwen25VLTextConfig, Qwen25VLTextExtractor
from omnihuman_conditions.language.states import TextStates, TextStatesConfig
from omnihuman_conditions.language.t5 import T5TextConfig, T5TextExtractor
from omnihuman_core.contracts.importer import ImportedComponent
from omnihuman_core.importing import PublicCheckpointError, settings, weight_files

WEIGHTS = "model.safetensors"
# Settings, vocabularies and templates; no code and no pickles.
SETTINGS = (".json", ".txt", ".model", ".jinja")
PRETRAINED = "./pretrained"


def import_audio(source: Path) -> Sequence[ImportedComponent]:
    """wav2vec 2.0, XLS-R or Whisper in a transformers folder, as ``audio_extractor``; four layers spread over it.

    Raises:
        ValueError: weights are missing or damaged.
    """
    found = settings(source) if source.is_dir() else {}
    config: Wav2Vec2Config | WhisperConfig
    if found.get("model_type") == "wav2vec2":
        name = "wav2vec2"
        config = replace(Wav2Vec2Config.base(PRETRAINED), layers=_spread(found.get("num_hidden_layers", 12)))
    elif found.get("model_type") == "whisper":
        name = "whisper"
        config = WhisperConfig.base(PRETRAINED, layers=_spread(found.get("encoder_layers", 4)))
    else:
        return []
    files = _files(source, "pretrained")
    return [ImportedComponent(component="audio_extractor", plugin=name, config=config, files=files)]


def import_text(source: Path) -> Sequence[ImportedComponent]:
    """Text encoders of a HunyuanVideo, HunyuanVideo-1.5 or Wan pipeline, as ``text_extractor`` and ``text_encoder``.

    Raises:
        ValueError: a folder of the pipeline or weights in it are missing or damaged.
    """
    found = settings(source / "text_encoder")
    kind, second = found.get("model_type"), settings(source / "text_encoder_2").get("model_type")
    folders = ["text_encoder", "tokenizer"]
    width = (found.get("text_config") or found).get("hidden_size")
    if kind in ("llama", "llava") and second in ("clip_text_model", "clip"):
        folders += ["text_encoder_2", "tokenizer_2"]
        clip = settings(source / "text_encoder_2")
        pooled = (clip.get("text_config") or clip).get("hidden_size", 512)
        return _text(source, folders, "text_hunyuan", HunyuanTextExtractor, HunyuanTextConfig.hunyuan_video, 256,
                     width, pooled)  # fmt: skip
    if kind in ("t5", "umt5"):
        return _text(source, folders, "text_t5", T5TextExtractor, T5TextConfig.wan, 512, found.get("d_model"), None)
    if kind in ("qwen2_5_vl", "qwen2_5_vl_text") and second == "t5":
        folders += ["text_encoder_2", "tokenizer_2"]
        both = Hunyuan15TextConfig.hunyuan_video_15
        return _text(source, folders, "text_hunyuan_15", Hunyuan15TextExtractor, both, 1256, width, None)
    if kind in ("qwen2_5_vl", "qwen2_5_vl_text"):
        make = Qwen25VLTextConfig.hunyuan_video_15
        return _text(source, folders, "text_qwen25_vl", Qwen25VLTextExtractor, make, 1000, width, None)
    return []


def _text(
    source: Path,
    folders: Sequence[str],
    plugin: str,
    made_by: Callable[[Any], Any],
    configure: Callable[[str], Any],
    tokens: int,
    width: int | None,
    pooled: int | None,
) -> Sequence[ImportedComponent]:
    if width is None:
        raise PublicCheckpointError(f"{source / 'text_encoder' / 'config.json'}: does not say how wide its states are")
    files: dict[str, Path] = {}
    for folder in folders:
        files |= _files(source / folder, f"pretrained/{folder}", weights=folder.startswith("text_encoder"))
    states = TextStatesConfig(max_tokens=tokens, token_dim=width, pooled_dim=pooled)
    with torch.device("meta"):
        like = dict(TextStates(states).state_dict())

    def null() -> Iterator[tuple[str, Tensor]]:
        # "No text" is what the model makes of an empty prompt; this runs it once.
        encoder = TextStates(states)
        features = made_by(configure(str(source))).extract([""])
        encoder.store_null(features)
        yield from encoder.state_dict().items()

    return [
        ImportedComponent(component="text_extractor", plugin=plugin, config=_relative(configure), files=files),
        ImportedComponent(component="text_encoder", plugin="text_states", config=states, like=like, tensors=null),
    ]


def _relative(configure: Callable[[str], Any]) -> Any:
    """The config of the copied folder; ``pathlib`` drops a leading ``./``, so it is put in front again."""
    return _prefixed(configure("pretrained"))


def _prefixed(config: Any) -> Any:
    changed = {}
    for name, value in vars(config).items():
        if hasattr(value, "__dataclass_fields__"):
            changed[name] = _prefixed(value)
        elif name in ("model", "tokenizer"):
            changed[name] = f"./{value}"
    return replace(config, **changed)


def _spread(layers: int) -> tuple[int, ...]:
    """Four hidden states spread over a model, the last one among them; all of a shallower model."""
    count = min(4, layers)
    return tuple(sorted({layers * (i + 1) // count for i in range(count)}))


def _files(folder: Path, target: str, *, weights: bool = True) -> dict[str, Path]:
    """Files of a transformers folder that are needed, by their place in the component's folder."""
    if not folder.is_dir():
        raise PublicCheckpointError(f"{folder}: missing from the pipeline; download it again")
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and file.suffix in SETTINGS]
    if weights:
        files += weight_files(folder, WEIGHTS)
    return {f"{target}/{file.name}": file for file in files}
