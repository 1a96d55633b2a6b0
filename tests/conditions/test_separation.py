"""Vocal separation: used where it works, and never a reason to fail."""

import logging

import pytest
import torch

from omnihuman_conditions.audio.separation import VocalSeparator, VoiceIsolation


def halve(waveform: torch.Tensor, *, sample_rate: int) -> torch.Tensor:
    assert sample_rate == 16000
    return waveform.mul_(0.5)


def test_a_separator_is_applied_and_leaves_its_input_alone(caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(halve, VocalSeparator)
    waveform = torch.rand(2, 100)
    before = waveform.clone()
    torch.testing.assert_close(VoiceIsolation(halve)(waveform, sample_rate=16000), before / 2)
    assert torch.equal(waveform, before)
    assert VoiceIsolation(None)(waveform, sample_rate=16000) is waveform
    assert not caplog.records


def broken(waveform: torch.Tensor, *, sample_rate: int) -> torch.Tensor:
    raise RuntimeError("out of memory\nsecond line")


@pytest.mark.parametrize(
    ("separator", "reason"),
    [
        (broken, "out of memory"),
        (lambda waveform, *, sample_rate: waveform[:, 1:], "shape"),
        (lambda waveform, *, sample_rate: waveform * float("nan"), "NaN"),
        (lambda waveform, *, sample_rate: None, "shape"),
    ],
)
def test_failure_keeps_the_raw_voice_and_says_so_once(
    separator: VocalSeparator, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    isolate = VoiceIsolation(separator)
    waveform = torch.rand(1, 50)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(isolate(waveform, sample_rate=16000), waveform)
        assert torch.equal(isolate(waveform, sample_rate=16000), waveform)
    (record,) = caplog.records
    assert reason in record.getMessage()
    assert "\n" not in record.getMessage()
