"""wav2vec 2.0 states: equal to transformers', at the right time, in passes whose seam error is measured."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Config as PublicConfig
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model

from omnihuman_conditions.audio.wav2vec2 import Wav2Vec2Config, Wav2Vec2Extractor

KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of the public architecture, with wav2vec's own kernels and strides, in its public format."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("wav2vec2")
    config = PublicConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8,) * 7,
        conv_kernel=KERNELS,
        conv_stride=STRIDES,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    Wav2Vec2Model(config).eval().save_pretrained(path)
    return path


def config(directory: Path, **fields: object) -> Wav2Vec2Config:
    base = {
        "path": str(directory),
        "layers": (0, 2, 3),
        "loudness": False,
        "quiet_db": -45.0,
        "chunk_seconds": 20.0,
        "context_seconds": 2.0,
    }
    return Wav2Vec2Config(**(base | fields))  # type: ignore[arg-type]


def voice(samples: int, batch: int = 1) -> torch.Tensor:
    return 0.1 * torch.randn(batch, samples, generator=torch.Generator().manual_seed(0))


def test_chosen_hidden_states_equal_transformers(directory: Path) -> None:
    waveform = voice(8000, 2)
    processor = Wav2Vec2FeatureExtractor(do_normalize=True)
    inputs = processor([row.numpy() for row in waveform], sampling_rate=16000, return_tensors="pt").input_values
    with torch.no_grad():
        hidden = Wav2Vec2Model.from_pretrained(directory).eval()(inputs, output_hidden_states=True).hidden_states
    expected = torch.stack([hidden[0], hidden[2], hidden[3]], 2)
    got = Wav2Vec2Extractor(config(directory)).extract(waveform)
    assert got.rate == 50.0
    torch.testing.assert_close(got.values, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("samples", [1, 399, 400, 719, 720, 8001])
def test_number_of_states_is_that_of_transformers(directory: Path, samples: int) -> None:
    model = Wav2Vec2Model.from_pretrained(directory)
    expected = int(model._get_feat_extract_output_lengths(max(samples, 400)))
    assert Wav2Vec2Extractor(config(directory)).extract(voice(samples)).values.shape == (1, expected, 3, 16)


def test_offset_is_the_middle_of_what_a_state_hears(directory: Path) -> None:
    extractor = Wav2Vec2Extractor(config(directory))
    features = extractor.extract(voice(4000))
    waveform = voice(4000).requires_grad_()
    states = Wav2Vec2Model.from_pretrained(directory).feature_extractor(waveform)
    for j in (0, 5):
        (gradient,) = torch.autograd.grad(states[0, :, j].sum(), waveform, retain_graph=True)
        heard = gradient[0].nonzero()[:, 0]
        middle = (int(heard[0]) + int(heard[-1])) / 2 / 16000
        assert features.offset + j / features.rate == pytest.approx(middle, abs=2 / 16000)


def test_seam_error_of_passes_is_small_and_falls_with_context(
    directory: Path, record_property: Callable[[str, object], None]
) -> None:
    waveform = voice(3 * 16000)
    whole = Wav2Vec2Extractor(config(directory)).extract(waveform).values
    errors = []
    for context in (0.0, 0.2, 0.6):
        passes = Wav2Vec2Extractor(config(directory, chunk_seconds=1.0, context_seconds=context))
        values = passes.extract(waveform).values
        assert values.shape == whole.shape
        errors.append(((values - whole).square().mean() / whole.square().mean()).sqrt().item())
    record_property("seam_error_by_context", errors)
    assert errors[0] > errors[1] > errors[2] > 0
    assert errors[2] < 0.02


def test_passes_do_not_shift_states(directory: Path) -> None:
    """The layer before the transformer sees a few neighbours only, so away from cuts it is exactly that of one pass."""
    waveform = voice(2 * 16000)
    whole = Wav2Vec2Extractor(config(directory, layers=(0,))).extract(waveform).values
    passes = Wav2Vec2Extractor(config(directory, layers=(0,), chunk_seconds=0.5, context_seconds=0.2)).extract(waveform)
    torch.testing.assert_close(passes.values, whole, atol=1e-4, rtol=0)


def test_loudness_makes_states_independent_of_level_but_not_of_silence(directory: Path) -> None:
    extractor = Wav2Vec2Extractor(config(directory, loudness=True))
    loud, soft = extractor.extract(voice(8000)), extractor.extract(0.2 * voice(8000))
    torch.testing.assert_close(loud.values, soft.values, atol=1e-3, rtol=0)
    assert torch.isfinite(extractor.extract(extractor.silence(0.5)[None]).values).all()


def test_aligned_to_25_fps(directory: Path) -> None:
    extractor = Wav2Vec2Extractor(config(directory))
    features = extractor.extract(voice(16000))
    aligned = extractor.align(features, fps=25, num_frames=25)
    stamps = features.offset + np.arange(features.values.shape[1]) / 50
    expected = np.interp((np.arange(25) + 0.5) / 25, stamps, features.values[0, :, 1, 4].numpy())
    np.testing.assert_allclose(aligned[0, :, 1, 4].numpy(), expected, atol=1e-5)


def public_states(path: Path, waveform: torch.Tensor) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        return Wav2Vec2Model.from_pretrained(path).eval()(waveform, output_hidden_states=True).hidden_states  # type: ignore[no-any-return]


def public_model(path: Path, *, stable: bool) -> Path:
    """XLS-R and the large models norm before each layer (``stable``), the base model after it."""
    torch.manual_seed(1)
    settings = PublicConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8,) * 7,
        conv_kernel=KERNELS,
        conv_stride=STRIDES,
        conv_bias=stable,
        feat_extract_norm="layer" if stable else "group",
        do_stable_layer_norm=stable,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    Wav2Vec2Model(settings).eval().save_pretrained(path)
    return path


@pytest.mark.parametrize("stable", [True, False])
@pytest.mark.parametrize("layers", [(0,), (1, 2), (0, 3), (2, 4)])
def test_stopping_after_the_last_chosen_layer_changes_nothing(
    tmp_path: Path, stable: bool, layers: tuple[int, ...]
) -> None:
    path = public_model(tmp_path / "model", stable=stable)
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(path)
    hidden = public_states(path, voice(8000, 2))
    extractor = Wav2Vec2Extractor(config(path, layers=layers))
    expected = torch.stack([hidden[layer] for layer in layers], 2)
    torch.testing.assert_close(extractor.extract(voice(8000, 2)).values, expected, atol=1e-5, rtol=0)
    assert len(extractor._model.encoder.layers) == max(layers[-1], 1)


def test_flags_of_the_preprocessor(directory: Path, tmp_path: Path) -> None:
    path = copy(directory, tmp_path / "model")
    for normalise in (True, False):
        Wav2Vec2FeatureExtractor(do_normalize=normalise).save_pretrained(path)
        processor = Wav2Vec2FeatureExtractor.from_pretrained(path)
        inputs = processor(voice(8000)[0].numpy(), sampling_rate=16000, return_tensors="pt").input_values
        got = Wav2Vec2Extractor(config(path, layers=(2,))).extract(voice(8000)).values[:, :, 0]
        torch.testing.assert_close(got, public_states(path, inputs)[2], atol=1e-4, rtol=0)
    # A model of raw sound hears speech at the level of a recording, not at unit variance.
    raw = Wav2Vec2Extractor(config(path, loudness=True, layers=(2,)))
    level = raw._normalise(voice(16000)).square().mean().log10() * 10
    assert float(level) == pytest.approx(-23, abs=0.2)
    Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(path)
    refused(path, "takes 8000 Hz")


def test_loading_shows_no_progress_bar_and_keeps_settings(
    directory: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled(), logging.get_verbosity()
    Wav2Vec2Extractor(config(directory, layers=(1,)))
    assert (logging.is_progress_bar_enabled(), logging.get_verbosity()) == before
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def refused(path: Path, match: str, **fields: object) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        Wav2Vec2Extractor(config(path, **fields))
    assert "\n" not in str(caught.value)


def copy(directory: Path, target: Path) -> Path:
    target.mkdir()
    for file in directory.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_bad_directories(directory: Path, tmp_path: Path) -> None:
    refused(tmp_path / "none", "directory not found")
    refused(tmp_path, "no readable config.json")
    other = copy(directory, tmp_path / "other")
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(settings | {"model_type": "bert"}))
    refused(other, "holds a 'bert' model")
    (other / "config.json").write_text("[1]")
    refused(other, "no readable config.json")
    pickled = copy(directory, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    refused(pickled, "no .safetensors weights")
    cut = copy(directory, tmp_path / "cut")
    data = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(data[: len(data) // 2])
    refused(cut, "cannot be loaded")


def test_incomplete_weights(directory: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = copy(directory, tmp_path / "part")
    tensors = load_file(path / "model.safetensors")
    del tensors["encoder.layers.1.attention.k_proj.weight"]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    refused(path, "lack 1 tensors, the first is encoder.layers.1.attention.k_proj.weight")


def test_bad_shards(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "shards"
    Wav2Vec2Model.from_pretrained(directory).save_pretrained(path, max_shard_size="5KB")
    index = path / "model.safetensors.index.json"
    waveform = voice(4000)
    whole = Wav2Vec2Extractor(config(directory)).extract(waveform).values
    assert torch.equal(Wav2Vec2Extractor(config(path)).extract(waveform).values, whole)
    content = json.loads(index.read_text())
    name = sorted(set(content["weight_map"].values()))[0]
    (path / name).rename(tmp_path / name)
    refused(path, f"lacks the weight shard {name}")
    moved = {key: f"../{name}" if shard == name else shard for key, shard in content["weight_map"].items()}
    index.write_text(json.dumps(content | {"weight_map": moved}))
    refused(path, "points outside its directory")
    index.write_text("{")
    refused(path, "index is not readable")


def test_wrong_shape(directory: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = copy(directory, tmp_path / "shape")
    tensors = load_file(path / "model.safetensors")
    tensors["encoder.layers.1.attention.k_proj.weight"] = torch.zeros(3, 3)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    refused(path, r"encoder.layers.1.attention.k_proj.weight has shape \(3, 3\), config.json asks for \(16, 16\)")


def test_bad_layers(directory: Path) -> None:
    refused(directory, "ends at 3", layers=(4,))
    for layers in ((), (2, 1), (1, 1), (-1,)):
        with pytest.raises(ValueError, match="layers must be increasing"):
            config(directory, layers=layers)
    with pytest.raises(ValueError, match="chunk_seconds"):
        config(directory, chunk_seconds=0.0)
