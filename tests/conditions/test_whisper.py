"""Whisper encoder states: equal to transformers', at the right time, in windows whose seam error is measured."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import WhisperConfig as PublicConfig
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperModel

from omnihuman_conditions.audio.whisper import WhisperConfig, WhisperExtractor
from omnihuman_core.testing import AudioExtractorConformance


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of the public architecture with windows of 2 s, in its public format."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("whisper")
    settings = PublicConfig(
        vocab_size=40,
        num_mel_bins=16,
        d_model=16,
        encoder_layers=3,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=100,
        max_target_positions=20,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    WhisperForConditionalGeneration(settings).eval().save_pretrained(path)
    WhisperFeatureExtractor(feature_size=16, chunk_length=2).save_pretrained(path)
    return path


def config(directory: Path, layers: tuple[int, ...] = (0, 2, 3), **fields: object) -> WhisperConfig:
    base = WhisperConfig.base(str(directory), layers=layers)
    return replace(base, **({"loudness_db": None, "context_seconds": 0.4} | fields))  # type: ignore[arg-type]


def voice(samples: int, batch: int = 1) -> torch.Tensor:
    return 0.1 * torch.randn(batch, samples, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layers", [(0,), (1, 2), (0, 3)])
def test_chosen_hidden_states_equal_transformers(directory: Path, layers: tuple[int, ...]) -> None:
    waveform = voice(2 * 16000, 2)
    inputs = WhisperFeatureExtractor.from_pretrained(directory)(
        [row.numpy() for row in waveform], sampling_rate=16000, return_tensors="pt"
    ).input_features
    with torch.no_grad():
        encoder = WhisperModel.from_pretrained(directory).eval().encoder
        hidden = encoder(inputs, output_hidden_states=True).hidden_states
    expected = torch.stack([hidden[layer] for layer in layers], 2)
    extractor = WhisperExtractor(config(directory, layers))
    got = extractor.extract(waveform)
    assert (got.rate, got.offset) == (50.0, 0.0)
    torch.testing.assert_close(got.values, expected, atol=1e-5, rtol=0)
    assert len(extractor._encoder.layers) == max(layers[-1], 1)


@pytest.mark.parametrize("samples", [1, 319, 320, 321, 31999, 32000, 32001, 5 * 16000 + 7, 100_000])
def test_fifty_states_a_second_for_any_length(directory: Path, samples: int) -> None:
    values = WhisperExtractor(config(directory, (3,))).extract(voice(samples)).values
    assert values.shape == (1, -(-samples // 320), 1, 16)


def test_windows_do_not_shift_states(directory: Path) -> None:
    """A click is heard at its own time, in whichever window it falls."""
    encoder = WhisperExtractor(config(directory, (0,)))
    quiet = encoder.extract(torch.full((1, 6 * 16000), 1e-3)).values
    for second in (0.5, 1.7, 3.0, 4.44, 5.9):
        waveform = torch.full((1, 6 * 16000), 1e-3)
        waveform[0, round(second * 16000)] += 0.5
        change = (encoder.extract(waveform).values - quiet).abs().sum((0, 2, 3))
        near = torch.arange(len(change)) / 50
        heard = (change * near)[(near - second).abs() < 0.1].sum() / change[(near - second).abs() < 0.1].sum()
        assert float(heard) == pytest.approx(second, abs=0.02)


def test_state_is_centred_on_its_mel_window(directory: Path) -> None:
    """State j hears mel windows round 2 j, and mel window i is centred on sample 160 i."""
    encoder = WhisperModel.from_pretrained(directory).encoder
    mel = torch.randn(1, 16, 200, requires_grad=True)
    states = torch.nn.functional.gelu(encoder.conv2(torch.nn.functional.gelu(encoder.conv1(mel))))
    (gradient,) = torch.autograd.grad(states[0, :, 30].sum(), mel)
    heard = gradient[0].abs().sum(0).nonzero()[:, 0]
    assert (int(heard[0]) + int(heard[-1])) / 2 == 60


def test_seam_error_is_small_and_falls_with_context(
    directory: Path, record_property: Callable[[str, object], None]
) -> None:
    """The same sound heard whole in one window and as the middle of a longer one differs less with more context."""
    waveform = voice(5 * 16000)
    errors = []
    for context in (0.0, 0.2, 0.5):
        extractor = WhisperExtractor(config(directory, (0,), context_seconds=context))
        values = extractor.extract(waveform).values
        # A state without attention only depends on the mel windows near it: here, the last two before a cut.
        mel = extractor._mel(waveform[0].numpy(), sampling_rate=16000, return_tensors="pt", truncation=False)
        convolved = torch.nn.functional.gelu(extractor._encoder.conv1(mel.input_features))
        whole = torch.nn.functional.gelu(extractor._encoder.conv2(convolved)).transpose(1, 2)
        last = slice(98 - round(context * 50), 100 - round(context * 50))
        expected = whole[:, last] + extractor._encoder.embed_positions.weight[last]
        errors.append(float((values[:, last, 0] - expected).abs().max()))
    record_property("seam_error_by_context", errors)
    assert errors[0] > 10 * max(errors[1:])


def test_loudness_and_separation(directory: Path) -> None:
    levelled = WhisperExtractor(config(directory, loudness_db=-23.0))
    torch.testing.assert_close(
        levelled.extract(voice(8000)).values, levelled.extract(0.3 * voice(8000)).values, atol=1e-4, rtol=0
    )
    separated = WhisperExtractor(config(directory), separator=lambda waveform, *, sample_rate: waveform * 0.5)
    plain = WhisperExtractor(config(directory))
    assert torch.equal(separated.extract(voice(8000)).values, plain.extract(voice(8000) * 0.5).values)
    assert torch.isfinite(plain.extract(plain.silence(0.3)[None]).values).all()


def test_half_precision_weights(directory: Path) -> None:
    half = WhisperExtractor(config(directory, dtype="bfloat16")).extract(voice(8000)).values
    assert half.dtype == torch.float32
    whole = WhisperExtractor(config(directory)).extract(voice(8000)).values
    assert 0 < float((half - whole).abs().max()) < 0.2


def test_refusals(directory: Path, tmp_path: Path) -> None:
    for layers, match in (((4,), "ends at 3"), ((), "increasing"), ((2, 1), "increasing"), ((-1,), "increasing")):
        with pytest.raises(ValueError, match=match):
            WhisperExtractor(config(directory, layers))
    with pytest.raises(ValueError, match="below half the window of 2 s"):
        WhisperExtractor(config(directory, context_seconds=1.0))
    with pytest.raises(ValueError, match="not found"):
        WhisperExtractor(config(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"WhisperConfig\.dtype must be one of"):
        config(directory, dtype="int8")
    path = tmp_path / "copy"
    path.mkdir()
    for file in directory.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    WhisperFeatureExtractor(feature_size=80, chunk_length=2).save_pretrained(path)
    with pytest.raises(ValueError, match="80 bands and 200 windows, the encoder takes 16 and 200"):
        WhisperExtractor(config(path))
    (path / "preprocessor_config.json").unlink()
    (path / "processor_config.json").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="whisper preprocessor in .* cannot be loaded") as caught:
        WhisperExtractor(config(path))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="NaN or infinite"):
        WhisperExtractor(config(directory)).extract(torch.full((1, 100), float("nan")))


class TestConformance(AudioExtractorConformance):
    @pytest.fixture
    def extractor(self, directory: Path) -> WhisperExtractor:
        return WhisperExtractor(config(directory))

    @pytest.fixture
    def raw(self) -> torch.Tensor:
        return voice(40_000, 2)
