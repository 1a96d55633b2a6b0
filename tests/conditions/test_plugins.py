"""Every plugin of the package is found by name, and each of its presets builds and survives its TOML form."""

import tomllib
from typing import Any

import pytest

from omnihuman_core.config import from_table, to_toml
from omnihuman_core.plugins import plugin


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("feature_extractor", "text_bytes"),
        ("feature_extractor", "log_mel"),
        ("feature_extractor", "skeleton"),
        ("condition_encoder", "text_bytes"),
        ("condition_encoder", "text_states"),
        ("condition_encoder", "audio"),
        ("condition_encoder", "pose_guider"),
    ],
)
def test_presets(group: Any, name: str) -> None:
    found: Any = plugin(group, name)
    assert "tiny" in found.presets
    for preset in found.presets.values():
        config = preset()
        assert from_table(found.config_class, tomllib.loads(to_toml(config))) == config
        assert found(config).config == config


@pytest.mark.parametrize(
    ("name", "preset", "arguments"),
    [
        ("wav2vec2", "base", {}),
        ("wav2vec2", "large", {}),
        ("whisper", "base", {"layers": (2, 4)}),
        ("text_llama", "hunyuan_video", {}),
        ("text_hunyuan", "hunyuan_video", {}),
        ("text_hunyuan_15", "hunyuan_video_15", {}),
        ("text_t5", "wan", {}),
        ("text_qwen25_vl", "hunyuan_video_15", {}),
        ("text_glyphs", "hunyuan_video_15", {}),
        ("captioner_local", "base", {}),
        ("pose_rtmlib", "base", {"detector": None}),
    ],
)
def test_what_needs_a_directory_says_so(name: str, preset: str, arguments: dict[str, Any]) -> None:
    found: Any = plugin("feature_extractor", name)
    config = getattr(found.config_class, preset)("weights", **arguments)
    assert from_table(found.config_class, tomllib.loads(to_toml(config))) == config
    with pytest.raises(ValueError, match="directory not found|not a local file") as caught:
        found(config)
    assert "\n" not in str(caught.value)
