"""Loads wav2vec 2.0 weights from a local directory, with errors that say what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Wav2Vec2Model


def load_wav2vec2(path: Path) -> Wav2Vec2Model:
    """The model in a local directory in the transformers layout, frozen; nothing is downloaded.

    Raises:
        ValueError: the directory is missing, holds another model, or incomplete or damaged weights.
    """
    if not path.is_dir():
        raise ValueError(f"wav2vec2 directory not found: {path}")
    try:
        kind = json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"wav2vec2 directory has no readable config.json: {path}") from error
    if kind != "wav2vec2":
        raise ValueError(f"wav2vec2 directory holds a {kind!r} model: {path}")
    if not list(path.glob("*.safetensors")):
        raise ValueError(f"wav2vec2 directory has no .safetensors weights: {path}; convert them first")

    try:
        from transformers import Wav2Vec2Model
    except ImportError as error:
        raise ValueError("wav2vec2 needs transformers: pip install 'omnihuman-conditions[wav2vec]'") from error

    try:
        model, report = Wav2Vec2Model.from_pretrained(
            path, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:
        # transformers and safetensors raise many kinds here, some of them several lines long.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"wav2vec2 weights in {path} cannot be loaded: {reason}") from error
    # Only training masks states; exports without the mask embedding are complete.
    missing = sorted(set(report["missing_keys"]) - {"masked_spec_embed"})
    if missing:
        raise ValueError(f"wav2vec2 weights in {path} lack {len(missing)} tensors, the first is {missing[0]}")
    return model.eval().requires_grad_(False)
