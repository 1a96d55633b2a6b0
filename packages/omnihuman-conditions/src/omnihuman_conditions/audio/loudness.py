"""Loudness of a voice, measured where somebody speaks."""

from __future__ import annotations

import torch
from einops import reduce
from torch import Tensor

_BLOCK_SECONDS = 0.025
_ACTIVE_RANGE_DB = 30.0


def active_level_db(waveform: Tensor, *, sample_rate: int) -> Tensor:
    """Mean level of the speech-active part, in dB relative to full scale.

    Blocks of 25 ms count as active when they lie within 30 dB of the loudest one, so that pauses and padding do not
    change the result.

    Args:
        waveform: ``(B, samples)`` in [-1, 1].
        sample_rate: Samples per second.

    Returns:
        ``(B,)``; digital silence gives -200.
    """
    block = max(1, round(_BLOCK_SECONDS * sample_rate))
    padded = torch.nn.functional.pad(waveform, (0, -waveform.shape[-1] % block))
    power = reduce(padded.square(), "b (n block) -> b n", "mean", block=block)  # (B, blocks)
    active = power >= power.amax(-1, keepdim=True) * 10 ** (-_ACTIVE_RANGE_DB / 10)
    level = (power * active).sum(-1) / active.sum(-1)
    return 10 * torch.log10(level + 1e-20)


def normalise_loudness(waveform: Tensor, *, sample_rate: int, target_db: float, quiet_db: float) -> Tensor:
    """Scale each waveform so that its speech-active level is ``target_db``.

    A waveform whose active level is below ``quiet_db`` is taken for noise rather than speech: its gain falls by 2 dB
    for each dB below, down to none, so that silence and faint noise are not blown up to the level of speech.

    Args:
        waveform: ``(B, samples)`` in [-1, 1].
        sample_rate: Samples per second.
        target_db: Level wanted, in dB relative to full scale.
        quiet_db: Lowest level that counts as speech, in dB relative to full scale.

    Returns:
        ``(B, samples)``, not clipped.
    """
    level_db = active_level_db(waveform, sample_rate=sample_rate)
    gain_db = target_db - level_db.clamp(min=quiet_db)
    gain_db = torch.where(level_db < quiet_db, (gain_db - 2 * (quiet_db - level_db)).clamp(min=0), gain_db)
    return waveform * (10 ** (gain_db / 20))[:, None]
