"""Log-mel states against transformers' spectrogram, and what loudness normalisation does and does not do."""

import math

import numpy as np
import pytest
import torch
from transformers.audio_utils import mel_filter_bank, spectrogram

from omnihuman_conditions.audio.log_mel import LogMelConfig, LogMelExtractor, mel_filters
from omnihuman_conditions.audio.loudness import active_level_db, normalise_loudness

RATE = 16000


def noise(seconds: float, level_db: float, seed: int = 0) -> torch.Tensor:
    x = torch.randn(1, round(seconds * RATE), generator=torch.Generator().manual_seed(seed))
    return x * 10 ** (level_db / 20)


def buzz(seconds: float, level_db: float) -> torch.Tensor:
    """A voiced-like sound: harmonics of 120 Hz, syllables at 4 Hz."""
    t = torch.arange(round(seconds * RATE)) / RATE
    x = sum(torch.sin(2 * math.pi * 120 * k * t) / k for k in range(1, 40)) * (0.6 + 0.4 * torch.sin(8 * math.pi * t))
    return (x / x.square().mean().sqrt() * 10 ** (level_db / 20))[None]


@pytest.mark.parametrize(("mels", "fft", "low", "high"), [(40, 512, 50.0, 7600.0), (80, 1024, 0.0, 8000.0)])
def test_filters_equal_transformers(mels: int, fft: int, low: float, high: float) -> None:
    expected = mel_filter_bank(fft // 2 + 1, mels, low, high, RATE, norm=None, mel_scale="htk")
    got = mel_filters(num_mels=mels, fft_size=fft, sample_rate=RATE, min_hz=low, max_hz=high)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)
    assert got.sum(0).min() > 0


def test_states_equal_transformers_spectrogram() -> None:
    config = LogMelConfig.tiny()
    waveform = noise(0.5, -20)
    normalised = normalise_loudness(waveform, sample_rate=RATE, target_db=-23.0, quiet_db=-45.0)[0]
    padded = np.pad(normalised.double().numpy(), 120)
    window = np.hanning(401)[:400]
    filters = mel_filter_bank(257, 40, config.min_hz, config.max_hz, RATE, norm=None, mel_scale="htk")
    power = spectrogram(
        padded, window, 400, 160, fft_length=512, power=2.0, center=False, mel_filters=filters, mel_floor=0.0
    )
    level = 10 * np.log10(power * (2 / window.sum()) ** 2 + 1e-8)
    expected = ((level.T - config.mean_db) / config.std_db)[:48].reshape(12, 160)
    got = LogMelExtractor(config).extract(waveform).values[0, :12, 0]
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-3)


def test_a_full_scale_sine_is_zero_db_in_its_band() -> None:
    t = torch.arange(RATE) / RATE
    config = LogMelConfig.tiny()
    quiet = LogMelConfig(**{**config.__dict__, "loudness_db": None})
    # A bin of the transform near the peak of a wide band.
    values = LogMelExtractor(quiet).extract(torch.sin(2 * math.pi * 4000 * t)[None]).values[0, 10, 0]
    level = values * quiet.std_db + quiet.mean_db
    assert level.max().item() == pytest.approx(0.0, abs=2.0)


@pytest.mark.parametrize("samples", [1, 160, 639, 640, 641, 16000])
def test_every_sample_is_covered(samples: int) -> None:
    features = LogMelExtractor(LogMelConfig.tiny()).extract(torch.full((2, samples), 0.1))
    assert features.values.shape == (2, -(-samples // 640), 1, 160)
    assert (features.rate, features.offset) == (25.0, 0.02)


def test_level_of_a_sine_and_of_a_sine_with_pauses() -> None:
    sine = 0.5 * torch.sin(2 * math.pi * 440 * torch.arange(RATE) / RATE)[None]
    expected = 10 * math.log10(0.125)
    assert active_level_db(sine, sample_rate=RATE).item() == pytest.approx(expected, abs=0.05)
    paused = torch.cat([torch.zeros(1, RATE), sine, torch.zeros(1, 3 * RATE)], 1)
    assert active_level_db(paused, sample_rate=RATE).item() == pytest.approx(expected, abs=0.05)
    assert active_level_db(torch.zeros(1, RATE), sample_rate=RATE).item() == pytest.approx(-200)


@pytest.mark.parametrize("level_db", [-44.0, -30.0, -23.0, -6.0])
def test_voices_end_up_at_one_level(level_db: float) -> None:
    out = normalise_loudness(buzz(2, level_db), sample_rate=RATE, target_db=-23.0, quiet_db=-45.0)
    assert active_level_db(out, sample_rate=RATE).item() == pytest.approx(-23.0, abs=0.01)


def test_faint_sounds_stay_faint_and_order_is_kept() -> None:
    levels = [-80.0, -60.0, -57.0, -50.0, -46.0, -45.0, -40.0]
    out = [
        active_level_db(
            normalise_loudness(noise(1, level), sample_rate=RATE, target_db=-23.0, quiet_db=-45.0), sample_rate=RATE
        ).item()
        for level in levels
    ]
    assert out[:2] == pytest.approx([-80.0, -60.0], abs=0.3)
    assert out == sorted(out)
    assert out[-1] == pytest.approx(-23.0, abs=0.01)


def test_silence_and_faint_noise_stay_far_from_speech() -> None:
    extractor = LogMelExtractor(LogMelConfig.tiny())
    speech, silence = extractor.extract(buzz(2, -35)).values, extractor.extract(torch.zeros(1, 2 * RATE)).values
    hiss = extractor.extract(noise(2, -60)).values

    def gap(a: torch.Tensor, b: torch.Tensor) -> float:
        return (a - b).square().mean().sqrt().item()

    assert silence.std() == 0
    assert gap(speech, silence) > 1.5
    assert gap(hiss, silence) < 0.5 * gap(speech, silence)


def test_padding_of_a_batch_does_not_change_a_voice() -> None:
    extractor = LogMelExtractor(LogMelConfig.tiny())
    voice = buzz(1, -30)
    alone = extractor.extract(voice).values
    padded = extractor.extract(torch.nn.functional.pad(voice, (0, 4 * RATE))).values
    # The last window reaches past the voice into the padding in both cases.
    torch.testing.assert_close(padded[:, :25], alone, atol=1e-4, rtol=0)


def test_silence_helper_and_refusals() -> None:
    extractor = LogMelExtractor(LogMelConfig.tiny())
    assert torch.equal(extractor.silence(0.5), torch.zeros(8000))
    for wrong in (torch.zeros(10), torch.zeros(1, 0), torch.zeros(1, 2, 10)):
        with pytest.raises(ValueError, match="waveform must be"):
            extractor.extract(wrong)
    with pytest.raises(ValueError, match="NaN"):
        extractor.extract(torch.tensor([[0.0, float("nan")]]))


@pytest.mark.parametrize("change", [{"hop": 0}, {"fft_size": 256}, {"max_hz": 9000.0}, {"std_db": 0.0}])
def test_config_refuses(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="LogMelConfig"):
        LogMelConfig(**{**LogMelConfig.tiny().__dict__, **change})
