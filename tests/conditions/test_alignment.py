"""Time stamps, windows and groups: an event at a known time reaches the latent frame that covers it."""

import numpy as np
import pytest
import torch

from omnihuman_conditions.audio.alignment import adjacent_frames, align, group_to_latent_frames
from omnihuman_conditions.audio.log_mel import LogMelConfig, LogMelExtractor
from omnihuman_core.contracts.extractor import AudioFeatures
from omnihuman_core.contracts.latents import LatentSpec


def features(count: int, *, rate: float, offset: float, seed: int = 0) -> AudioFeatures:
    values = torch.randn(2, count, 2, 3, generator=torch.Generator().manual_seed(seed))
    return AudioFeatures(values=values, rate=rate, offset=offset)


@pytest.mark.parametrize(
    ("rate", "fps", "count"), [(50.0, 25.0, 40), (25.0, 25.0, 12), (50.0, 16.0, 50), (25.0, 30.0, 25)]
)
def test_align_equals_torch_interpolation(rate: float, fps: float, count: int) -> None:
    source = features(count, rate=rate, offset=0.5 / rate)
    frames = round(count * fps / rate)
    flat = source.values.flatten(2).transpose(1, 2)
    expected = torch.nn.functional.interpolate(flat, size=frames, mode="linear", align_corners=False)
    got = align(source, fps=fps, num_frames=frames)
    assert got.shape == (2, frames, 2, 3)
    torch.testing.assert_close(got.flatten(2).transpose(1, 2), expected, atol=1e-5, rtol=0)


def test_align_equals_numpy_at_wav2vec_time_stamps_and_in_segments() -> None:
    source = features(99, rate=50.0, offset=199.5 / 16000)
    stamps = source.offset + np.arange(99) / source.rate
    times = (np.arange(60) + 0.5) / 25
    expected = np.interp(times, stamps, source.values[1, :, 0, 2].double().numpy())
    got = align(source, fps=25, num_frames=60)
    np.testing.assert_allclose(got[1, :, 0, 2].numpy(), expected, atol=1e-5)
    torch.testing.assert_close(align(source, fps=25, num_frames=13, first_frame=20), got[:, 20:33])


def test_align_is_exact_ten_minutes_in() -> None:
    ramp = torch.arange(30_000, dtype=torch.float64)[None, :, None, None]
    got = align(AudioFeatures(values=ramp, rate=50.0, offset=0.01), fps=25, num_frames=1, first_frame=14_000)
    assert got.item() == pytest.approx(((14_000 + 0.5) / 25 - 0.01) * 50, abs=1e-6)


def test_one_state_serves_every_frame() -> None:
    source = features(1, rate=25.0, offset=0.02)
    assert torch.equal(align(source, fps=25, num_frames=3), source.values.expand(2, 3, 2, 3))


@pytest.mark.parametrize("change", [{"fps": 0}, {"fps": float("nan")}, {"num_frames": 0}, {"first_frame": -1}])
def test_align_refuses(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="fps and num_frames"):
        align(features(4, rate=25, offset=0.02), **({"fps": 25, "num_frames": 2, "first_frame": 0} | change))


def test_align_refuses_no_states() -> None:
    with pytest.raises(ValueError, match="n >= 1"):
        align(AudioFeatures(values=torch.zeros(1, 0, 1, 1), rate=25, offset=0), fps=25, num_frames=1)


def test_window_content_and_edges() -> None:
    frames = torch.arange(6.0)[None, :, None]
    window = adjacent_frames(frames, 5)[0, :, :, 0]
    assert window[3].tolist() == [1, 2, 3, 4, 5]
    assert window[0].tolist() == [0, 0, 0, 1, 2]
    assert window[5].tolist() == [3, 4, 5, 5, 5]
    with pytest.raises(ValueError, match="odd"):
        adjacent_frames(frames, 4)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_groups_are_the_frame_ranges_of_the_latent_spec(stride: int) -> None:
    spec = LatentSpec(channels=1, temporal_stride=stride, spatial_stride=8)
    length = spec.pixel_frames(5)
    groups = group_to_latent_frames(torch.arange(length)[None], stride)[0]
    assert groups.shape == (5, stride)
    for latent, group in enumerate(groups.tolist()):
        assert sorted(set(group)) == list(spec.frame_range(latent))
        assert len(group) == stride


def test_groups_refuse_other_lengths() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        group_to_latent_frames(torch.zeros(1, 8, 2), 4)


@pytest.mark.parametrize("milliseconds", [15, 20, 345, 1000, 1234, 1925])
def test_a_click_lands_on_the_latent_frame_that_covers_it(milliseconds: int) -> None:
    extractor = LogMelExtractor(LogMelConfig.tiny())
    waveform = torch.zeros(1, 2 * 16000)
    waveform[0, milliseconds * 16] = 0.9
    aligned = extractor.align(extractor.extract(waveform), fps=25, num_frames=49)
    frame = int(aligned[0, :, 0].sum(-1).argmax())
    latent = int(group_to_latent_frames(aligned, 4)[0].amax(1).sum((1, 2)).argmax())
    spec = LatentSpec(channels=1, temporal_stride=4, spatial_stride=8)
    assert frame == milliseconds // 40
    assert frame in spec.frame_range(latent)
