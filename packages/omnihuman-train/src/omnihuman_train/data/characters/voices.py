"""Speech-like and singing-like voices by source-filter formant synthesis, with exact mouth truth.

A clip is a list of phonemes on a 100 Hz control grid. Each carries formants, loudness, noise and the mouth it is spoken
with; the waveform and the mouth opening come from the same grid, so their timing agrees to the sample. Formants of
vowels follow Peterson and Barney (1952), men's averages; other voices scale them by vocal tract length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from omnihuman_train.data.characters.phonemes import CONTROL_RATE, Array, Score, write_song, write_speech

SAMPLE_RATE = 16_000
FRAME_RATE = 25
SPEECH_KINDS = ("speech", "singing", "silence", "noise")
TRAIN_FAMILIES = ("low", "high", "creaky", "breathy")
HELDOUT_FAMILY = "childlike"

# family -> F0 range in Hz, vocal tract scale of formants, aspiration noise, irregularity of F0
FAMILIES: dict[str, tuple[float, float, float, float, float, float]] = {
    "low": (85, 140, 0.95, 1.05, 0.05, 0.01),
    "high": (175, 260, 1.10, 1.22, 0.08, 0.01),
    "creaky": (70, 110, 0.95, 1.15, 0.10, 0.12),
    "breathy": (120, 220, 1.00, 1.20, 0.60, 0.02),
    "childlike": (280, 380, 1.28, 1.42, 0.10, 0.015),
}


@dataclass(frozen=True, kw_only=True)
class VoiceTrack:
    """A voice and the mouth it is spoken with.

    Attributes:
        waveform: (samples,) float32 mono at 16 kHz.
        mouth_open: (T,) in [0, 1], phoneme openness times loudness, sampled at frame centres.
        rounding: (T,) in [0, 1], lip rounding.
        loudness: (T,) in [0, 1].
        attributes: family, F0 and level.
    """

    waveform: Array
    mouth_open: Array
    rounding: Array
    loudness: Array
    attributes: dict[str, Any]


def _hann_smooth(track: Array, width: int) -> Array:
    kernel = np.hanning(width + 2)[1:-1].astype(np.float32)
    padded = np.pad(track, width // 2, mode="edge")
    smooth: Array = np.convolve(padded, kernel / kernel.sum(), mode="valid").astype(np.float32)
    return smooth[: len(track)]


def _pulses(f0: Array, jitter: float, rng: np.random.Generator) -> Array:
    """A sawtooth of falling -6 dB per octave, the slope of a glottal pulse after radiation; F0 in Hz per sample."""
    phase = np.cumsum(f0 / SAMPLE_RATE, dtype=np.float64)
    cycle = np.floor(phase)
    saw = (phase - cycle - 0.5).astype(np.float32)
    # rounding the jump off over one sample keeps most aliases out of the band
    saw[1:] = 0.5 * (saw[1:] + saw[:-1])
    gain = 1.0 + jitter * rng.standard_normal(int(cycle[-1]) + 2).astype(np.float32) * 3
    pulses: Array = saw * gain[cycle.astype(np.int64)]
    return pulses


def formant_response(frequency: Array, formants: Array) -> Array:
    """Magnitude of a cascade of two-pole resonances, one per formant.

    Args:
        frequency: (F,) in Hz.
        formants: (N, K) centre frequencies in Hz; bandwidths are 60 Hz + 4 % of the centre.

    Returns:
        (N, F), 1 at 0 Hz, with a peak at each formant.
    """
    response = np.ones((formants.shape[0], frequency.shape[0]), np.float32)
    for k in range(formants.shape[1]):
        centre = formants[:, k : k + 1]
        ratio = np.square(frequency[None] / centre)
        width = np.square((60 + 0.04 * centre) / centre)
        response *= np.square(1 - ratio) + width * ratio
    magnitude: Array = 1.0 / np.sqrt(response)
    return magnitude


def _filter(source: Array, gains: Array, hop: int, window: Array) -> Array:
    """Short-time filtering: frame i, centred at sample i * hop, is weighted by `gains[i]` in frequency."""
    size = len(window)
    padded = np.pad(source, size // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop][: len(gains)] * window
    shaped = np.fft.irfft(np.fft.rfft(frames, axis=1) * gains, n=size, axis=1) * window
    total = np.zeros(hop * (len(gains) - 1) + size, np.float32)
    overlap = size // hop
    for k in range(overlap):
        part = shaped[:, k * hop : (k + 1) * hop].reshape(-1)
        total[k * hop : k * hop + len(part)] += part[: len(total) - k * hop]
    # Hann squared windows with four overlaps add up to 1.5
    out: Array = total[size // 2 : size // 2 + len(source)] / (np.square(window).sum() / hop)
    return out


def synthesise(seed: int, num_frames: int, *, kind: str = "speech", family: str = "low") -> VoiceTrack:
    """Synthesises one voice track.

    Args:
        seed: decides everything that is said and how.
        num_frames: T, video frames at 25 fps; the waveform has T / 25 seconds.
        kind: "speech", "singing", "silence" or "noise"; the mouth stays shut on the last two.
        family: voice family, a key of `FAMILIES`.

    Raises:
        ValueError: unknown kind or family, or fewer than one frame.
    """
    if kind not in SPEECH_KINDS:
        raise ValueError(f"speech is {kind!r}; choose one of {SPEECH_KINDS}")
    if family not in FAMILIES:
        raise ValueError(f"family is {family!r}; choose one of {tuple(FAMILIES)}")
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}; give at least 1")
    rng = np.random.default_rng([seed, 11])
    samples = num_frames * SAMPLE_RATE // FRAME_RATE
    score = Score(num_frames * CONTROL_RATE // FRAME_RATE + 1)
    f0_low, f0_high, scale_low, scale_high, breath, jitter = FAMILIES[family]
    f0, scale = float(rng.uniform(f0_low, f0_high)), float(rng.uniform(scale_low, scale_high))
    rate, level = float(rng.uniform(3.0, 4.8)), float(rng.uniform(0.06, 0.16))
    attributes = {"family": family, "f0": f0, "formant_scale": scale, "level": level, "kind": kind}
    if kind == "speech":
        write_speech(score, rng, rate)
    elif kind == "singing":
        write_song(score, rng)
    floor = 10.0 ** float(rng.uniform(-3.4, -2.0)) * rng.standard_normal(samples).astype(np.float32) * 0.5
    if kind == "silence":
        waveform = floor * (0.1 if rng.random() < 0.5 else 0.5)
    elif kind == "noise":
        waveform = floor + _noise(rng, samples, level)
    else:
        waveform = floor + level * _voice(score, rng, samples, f0, scale, breath, jitter, kind == "singing")
    centres = 2 + 4 * np.arange(num_frames)
    mouth, rounding, loudness = (_hann_smooth(x, 13)[centres] for x in (score.open, score.round, score.voiced))
    return VoiceTrack(
        waveform=np.clip(waveform, -1, 1).astype(np.float32),
        mouth_open=np.clip(mouth, 0, 1),
        rounding=rounding,
        loudness=np.clip(loudness, 0, 1),
        attributes=attributes,
    )


def _voice(
    score: Score,
    rng: np.random.Generator,
    samples: int,
    f0: float,
    scale: float,
    breath: float,
    jitter: float,
    singing: bool,
) -> Array:
    """The waveform of a score, at about unit loudness while a wide vowel sounds."""
    hop, size = SAMPLE_RATE // CONTROL_RATE, 4 * SAMPLE_RATE // CONTROL_RATE
    window = np.hanning(size + 1)[:-1].astype(np.float32)
    seconds = np.arange(score.length) / CONTROL_RATE
    pitch = f0 * _hann_smooth(score.pitch, 5 if singing else 15)
    pitch = pitch * (1 + (0.018 * np.sin(2 * np.pi * 5.6 * seconds) if singing else 0.02 * np.sin(3.1 * seconds)))
    pitch = pitch * (1 + jitter * rng.standard_normal(score.length))
    per_sample = np.interp(np.arange(samples) / hop, np.arange(score.length), pitch).astype(np.float32)
    white = rng.standard_normal(samples).astype(np.float32)
    source = (1 - breath) * _pulses(per_sample, jitter, rng) + breath * 0.25 * white
    formants = np.stack([_hann_smooth(score.formants[:, k], 5) for k in range(3)], axis=1) * scale
    formants = np.concatenate([formants, np.full((score.length, 1), 3500 * scale, np.float32)], axis=1)
    frequency = np.fft.rfftfreq(size, 1 / SAMPLE_RATE).astype(np.float32)
    gains = formant_response(frequency, formants)
    # equal energy for all vowels, so that loudness alone decides the level
    gains /= np.sqrt(np.mean(np.square(gains[:, 2:] / np.arange(2, gains.shape[1])), axis=1, keepdims=True)) * 40
    voiced = _filter(source, gains * _hann_smooth(score.voiced, 3)[:, None], hop, window)
    centre, spread = score.noise_centre[:, None], 900.0
    hiss = np.exp(-0.5 * np.square((frequency[None] - centre) / spread)) * _hann_smooth(score.noise, 3)[:, None]
    mixed: Array = voiced * 8 + _filter(white, hiss.astype(np.float32), hop, window)
    return mixed


def _noise(rng: np.random.Generator, samples: int, level: float) -> Array:
    """Noise that is no voice: coloured, with slow swells, hum or clicks."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    frequency = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    spectrum *= (frequency + 30.0) ** -float(rng.uniform(0.0, 1.0))
    sound = np.fft.irfft(spectrum, n=samples)
    seconds = np.arange(samples) / SAMPLE_RATE
    sound *= (1 + 0.5 * np.sin(2 * np.pi * float(rng.uniform(0.2, 1.0)) * seconds + rng.uniform(0, 6))) / sound.std()
    if rng.random() < 0.3:
        sound += np.sin(2 * np.pi * float(rng.choice([50, 60, 100, 120])) * seconds)
    quiet: Array = (sound * level * float(rng.uniform(0.2, 1.0))).astype(np.float32)
    return quiet
