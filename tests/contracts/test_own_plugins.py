"""The conformance kits on our own plugins, which are got through their entry points as anybody else's would be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from omnihuman_core.config import from_table
from omnihuman_core.plugins import installed, plugin
from omnihuman_core.testing import (
    AudioExtractorConformance,
    BackboneConformance,
    ConditionEncoderConformance,
    FeatureExtractorConformance,
    PoseExtractorConformance,
    VideoVAEConformance,
)
from omnihuman_core.testing.numerics import randomize

VAE_TABLE = {
    "in_channels": 3,
    "latent_channels": 4,
    "patch_size": [1, 2, 2],
    "channels": [8, 12],
    "encoder_blocks": [1, 1],
    "decoder_blocks": [1, 1],
    "spatial_downsample": [True],
    "temporal_downsample": [True],
    "temporal_kernel": 3,
    "convolution": "full",
    "tubelet_skip": True,
    "norm_eps": 1e-6,
    "initial_logvar": -3.0,
}
BACKBONE_TABLE = {
    "latent_channels": 4,
    "patch_size": [1, 2, 2],
    "hidden_size": 32,
    "num_heads": 2,
    "num_double_blocks": 1,
    "num_single_blocks": 1,
    "mlp_ratio": 2.0,
    "rope_dims": [4, 6, 6],
    "rope_theta": 256.0,
    "modulation": "per_block",
    "clean_modulation": "zero",
    "segment_embedding": True,
    "text_dim": 12,
    "text_refiner_depth": 1,
    "pooled_dim": 10,
    "audio_dim": 8,
    "audio_blocks": [0, 1],
    "pose_channels": 5,
    "reference": True,
    "reference_slot": 0,
    "motion": True,
    "norm_eps": 1e-6,
}


def build(kind: str, name: str, table: dict[str, Any]) -> Any:
    made_by = plugin(kind, name)
    return made_by(from_table(made_by.config_class, table))


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def test_every_installed_plugin_has_a_kit_here():
    """A plugin added to a package without a conformance test shows here."""
    from omnihuman_core.testing.fake_encoders import FAKE_PLUGINS

    ours = {kind: set(installed(kind)) - set(FAKE_PLUGINS.get(kind, ())) for kind in KITS}
    assert ours == {kind: set(names) | set(ELSEWHERE.get(kind, ())) for kind, names in KITS.items()}


def test_plugins_of_public_parts_are_tested_where_their_models_are_built():
    for kind, files in ELSEWHERE.items():
        for name, file in files.items():
            assert plugin(kind, name).__name__ in (TESTS / file).read_text(), (name, file)


class TestCausalVAE(VideoVAEConformance):
    @pytest.fixture(params=["full", "factored"])
    def vae(self, request: pytest.FixtureRequest) -> Any:
        vae = build("video_vae", "causal", VAE_TABLE | {"convolution": request.param})
        randomize(vae)
        with torch.no_grad():
            mean = vae.posterior(self.video(vae)).mean
        # As after training: the constants are measured on posterior means.
        vae.set_latent_statistics(mean.mean((0, 2, 3, 4)), mean.std((0, 2, 3, 4)))
        return vae.eval()


class TestMMDiT(BackboneConformance):
    @pytest.fixture(params=["per_block", "shared"])
    def backbone(self, request: pytest.FixtureRequest) -> Any:
        return randomize(build("backbone", "mmdit", BACKBONE_TABLE | {"modulation": request.param})).eval()


class TestMMDiTWithoutConditions(BackboneConformance):
    @pytest.fixture
    def backbone(self) -> Any:
        table = {
            key: value for key, value in BACKBONE_TABLE.items() if not key.endswith("_dim") and key != "pose_channels"
        }
        bare = {
            "text_refiner_depth": 0,
            "audio_blocks": [],
            "reference": False,
            "motion": False,
            "patch_size": [2, 2, 2],
        }
        return randomize(build("backbone", "mmdit", table | bare)).eval()


TEXT_EXTRACTOR = {"max_words": 6, "max_bytes": 8}


class TestByteTextExtractor(FeatureExtractorConformance):
    @pytest.fixture
    def extractor(self) -> Any:
        return build("feature_extractor", "text_bytes", TEXT_EXTRACTOR)

    @pytest.fixture
    def raw(self) -> list[str]:
        return ["A woman in a blue coat", ""]


class TestByteTextEncoder(ConditionEncoderConformance):
    @pytest.fixture
    def encoder(self) -> Any:
        made_by = plugin("condition_encoder", "text_bytes")
        return randomize(made_by(made_by.config_class.tiny())).eval()

    @pytest.fixture
    def features(self) -> Any:
        return build("feature_extractor", "text_bytes", TEXT_EXTRACTOR).extract(["A woman in a blue coat", "a man"])


class TestLogMelExtractor(AudioExtractorConformance):
    @pytest.fixture
    def extractor(self) -> Any:
        made_by = plugin("feature_extractor", "log_mel")
        return made_by(made_by.config_class.tiny())

    @pytest.fixture
    def raw(self) -> Tensor:
        return 0.1 * randn(2, 8000)


@pytest.fixture(scope="module")
def wav2vec2_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A wav2vec 2.0 of random weights, as the library itself saves it."""
    import transformers

    folder = tmp_path_factory.mktemp("wav2vec2")
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=(8, 8, 8, 8, 8, 8, 8),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    transformers.Wav2Vec2Model(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return str(folder)


class TestWav2Vec2Extractor(AudioExtractorConformance):
    @pytest.fixture
    def extractor(self, wav2vec2_folder: str) -> Any:
        made_by = plugin("feature_extractor", "wav2vec2")
        return made_by(replace(made_by.config_class.base(wav2vec2_folder), layers=(1, 2)))

    @pytest.fixture
    def raw(self) -> Tensor:
        return 0.1 * randn(2, 8000)


class TestAudioEncoder(ConditionEncoderConformance):
    @pytest.fixture(params=["softmax", "concat"])
    def encoder(self, request: pytest.FixtureRequest) -> Any:
        table = {
            "num_layers": 2,
            "feature_dim": 6,
            "feature_norm": True,
            "layer_mix": request.param,
            "window": 3,
            "hidden_dim": 8,
            "token_dim": 5,
            "temporal_stride": 4,
        }
        return randomize(build("condition_encoder", "audio", table)).eval()

    @pytest.fixture
    def features(self) -> Tensor:
        return randn(2, 9, 2, 6)


class TestSkeletonExtractor(PoseExtractorConformance):
    @pytest.fixture(params=["tiny", "full"])
    def extractor(self, request: pytest.FixtureRequest) -> Any:
        made_by = plugin("feature_extractor", "skeleton")
        return made_by(getattr(made_by.config_class, request.param)())

    @pytest.fixture
    def pose_file(self, tmp_path: Path, raw: Tensor) -> Path:
        path = tmp_path / "pose.json"
        path.write_text(json.dumps({"fps": 25, "keypoints": raw.repeat(10, 1, 1).tolist()}))
        return path

    @pytest.fixture
    def raw(self) -> Tensor:
        return torch.rand(2, 133, 3, generator=torch.Generator().manual_seed(0))


class TestPoseGuider(ConditionEncoderConformance):
    @pytest.fixture
    def encoder(self) -> Any:
        table = {
            "in_channels": 3,
            "hidden_dim": 8,
            "out_channels": 4,
            "margin": 1,
            "temporal_stride": 2,
            "spatial_stride": 4,
        }
        return randomize(build("condition_encoder", "pose_guider", table)).eval()

    @pytest.fixture
    def features(self) -> Tensor:
        return torch.rand(2, 3, 5, 8, 12, generator=torch.Generator().manual_seed(0))


KITS = {
    "video_vae": {"causal": TestCausalVAE},
    "backbone": {"mmdit": TestMMDiT},
    "feature_extractor": {
        "text_bytes": TestByteTextExtractor,
        "log_mel": TestLogMelExtractor,
        "wav2vec2": TestWav2Vec2Extractor,
        "skeleton": TestSkeletonExtractor,
    },
    "condition_encoder": {
        "text_bytes": TestByteTextEncoder,
        "audio": TestAudioEncoder,
        "pose_guider": TestPoseGuider,
    },
}

# Plugins that wrap a public model are tested beside the small random model that stands in for it.
TESTS = Path(__file__).parents[1]
ELSEWHERE = {
    "video_vae": {
        "wan": "vae/adapters/conftest.py",
        "hunyuan_video": "vae/adapters/conftest.py",
        "diffusers": "vae/adapters/conftest.py",
    },
    "feature_extractor": {
        "whisper": "conditions/test_whisper.py",
        "text_llama": "conditions/test_language.py",
        "text_hunyuan": "conditions/test_language.py",
        "text_hunyuan_15": "conditions/test_language.py",
        "text_t5": "conditions/test_language.py",
        "text_qwen25_vl": "conditions/test_language.py",
        "text_glyphs": "conditions/test_language.py",
        "captioner_local": "conditions/test_captioner.py",
        "captioner_server": "conditions/test_captioner.py",
        "pose_rtmlib": "conditions/test_pose_estimator.py",
    },
    "condition_encoder": {"text_states": "conditions/test_text_states.py"},
}
