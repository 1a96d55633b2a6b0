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


def test_wav2vec2_has_no_preset_without_a_directory() -> None:
    found: Any = plugin("feature_extractor", "wav2vec2")
    config = found.config_class.base("weights")
    assert from_table(found.config_class, tomllib.loads(to_toml(config))) == config
    with pytest.raises(ValueError, match="directory not found"):
        found(config)
