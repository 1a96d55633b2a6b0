"""Voices: formants and F0 where they were put, timing to the sample, the mouth shut on silence and noise."""

import numpy as np
import pytest
from scipy import signal

from omnihuman_train.data.characters import voices
from omnihuman_train.data.characters.phonemes import VOWELS, Score
from omnihuman_train.data.characters.voices import FAMILIES, SAMPLE_RATE, synthesise


@pytest.mark.parametrize("vowel", ["a", "e", "i"])
def test_formants_are_peaks_of_the_response(vowel: str) -> None:
    formants = np.array([VOWELS[vowel][:3]], np.float32)
    frequency = np.arange(0, 4000, 5, dtype=np.float32)
    response = voices.formant_response(frequency, formants)[0]
    peaks = frequency[signal.find_peaks(response)[0]]
    for formant in formants[0]:
        assert np.abs(peaks - formant).min() < 40


@pytest.mark.parametrize("vowel", ["a", "ae", "e"])
def test_a_sung_vowel_peaks_at_its_first_formant_and_sounds_at_its_pitch(vowel: str) -> None:
    score = Score(101)
    score.vowel(0, 101, vowel, 1.0)
    wave = voices._voice(score, np.random.default_rng(0), SAMPLE_RATE, 100.0, 1.0, 0.0, 0.0, False)
    frequency, power = signal.welch(wave, SAMPLE_RATE, nperseg=4096)
    # the source falls by 6 dB per octave: undo it, and smooth over one harmonic to see the envelope
    envelope = np.convolve(np.sqrt(power) * frequency, np.hanning(33), mode="same")
    band = (frequency > 250) & (frequency < 1000)
    assert frequency[band][envelope[band].argmax()] == pytest.approx(VOWELS[vowel][0], abs=70)
    correlation = signal.correlate(wave, wave, mode="full")[len(wave) - 1 :]
    period = 100 + int(correlation[100:250].argmax())
    assert SAMPLE_RATE / period == pytest.approx(100.0, rel=0.04)


@pytest.mark.parametrize("family", FAMILIES)
def test_loudness_of_the_waveform_follows_the_mouth_without_delay(family: str) -> None:
    sound, mouth = [], []
    for seed in range(6):
        track = synthesise(seed, 50, family=family)
        assert track.waveform.shape == (32_000,)
        assert np.abs(track.waveform).max() <= 1
        sound.append(np.sqrt((track.waveform.reshape(50, 640) ** 2).mean(1)) / track.waveform.std())
        mouth.append(track.mouth_open)
    by_lag = {
        lag: np.mean([np.corrcoef(np.roll(s, -lag)[3:-3], m[3:-3])[0, 1] for s, m in zip(sound, mouth, strict=True)])
        for lag in (-2, -1, 0, 1, 2)
    }
    assert max(by_lag, key=lambda lag: by_lag[lag]) == 0
    assert by_lag[0] > 0.75


def test_mouths_are_often_open_and_often_shut_in_speech() -> None:
    mouth = np.concatenate([synthesise(seed, 49).mouth_open for seed in range(40)])
    assert mouth.min() >= 0
    assert mouth.max() <= 1
    assert (mouth < 0.1).mean() > 0.15
    assert (mouth > 0.5).mean() > 0.2


@pytest.mark.parametrize("kind", ["silence", "noise"])
def test_mouth_stays_shut_without_a_voice(kind: str) -> None:
    for seed in range(5):
        track = synthesise(seed, 25, kind=kind)
        assert (track.mouth_open == 0).all()
        assert (track.waveform != 0).any()


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="speech"):
        synthesise(0, 10, kind="humming")
    with pytest.raises(ValueError, match="family"):
        synthesise(0, 10, family="alto")
    with pytest.raises(ValueError, match="num_frames"):
        synthesise(0, 0)
