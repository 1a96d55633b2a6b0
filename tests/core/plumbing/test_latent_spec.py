"""Arithmetic between pixels and latents, for any strides."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnihuman_core.contracts.latents import LatentSpec

specs = st.builds(
    LatentSpec,
    channels=st.integers(1, 64),
    temporal_stride=st.integers(1, 12),
    spatial_stride=st.integers(1, 32),
)


def test_the_papers_strides():
    """Hand-counted at 4x8x8: 5 motion frames are 2 latent frames, 129 frames 33."""
    spec = LatentSpec(channels=16, temporal_stride=4, spatial_stride=8)
    assert spec.latent_shape(129, 720, 1280) == (16, 33, 90, 160)
    assert spec.motion_latent_frames(5) == 2
    assert [list(spec.frame_range(i)) for i in range(3)] == [[0], [1, 2, 3, 4], [5, 6, 7, 8]]
    assert [spec.fit_frames(n) for n in (0, 1, 2, 5, 6)] == [1, 1, 5, 5, 9]


@given(spec=specs, frames=st.integers(1, 400))
def test_frames_fit_and_come_back(spec, frames):
    fitted = spec.fit_frames(frames)
    assert frames <= fitted < frames + spec.temporal_stride
    assert spec.pixel_frames(spec.latent_frames(fitted)) == fitted


@given(spec=specs, latent_frames=st.integers(1, 40))
def test_ranges_tile_the_clip(spec, latent_frames):
    """Each pixel frame belongs to one latent frame, in order."""
    covered = [frame for i in range(latent_frames) for frame in spec.frame_range(i)]
    assert covered == list(range(spec.pixel_frames(latent_frames)))


@given(spec=specs, height=st.integers(1, 60), width=st.integers(1, 60))
def test_sizes_come_back(spec, height, width):
    assert spec.latent_size(*spec.pixel_size(height, width)) == (height, width)


@given(spec=specs, frames=st.integers(-3, 200))
def test_other_lengths_are_refused_with_the_next_that_fits(spec, frames):
    if frames >= 1 and (frames - 1) % spec.temporal_stride == 0:
        assert spec.latent_frames(frames) == 1 + (frames - 1) / spec.temporal_stride
    else:
        with pytest.raises(ValueError, match=f"the next length that fits is {spec.fit_frames(frames)}$"):
            spec.latent_frames(frames)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.latent_size(12, 16), "height must be a multiple of 8, got 12"),
        (lambda s: s.latent_size(16, 0), "width must be a multiple of 8, got 0"),
        (lambda s: s.pixel_frames(0), "latent_frames must be at least 1"),
        (lambda s: s.frame_range(-1), "latent_frame must not be negative"),
        (lambda s: LatentSpec(channels=0, temporal_stride=1, spatial_stride=1), "channels must be at least 1"),
    ],
)
def test_bad_sizes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(LatentSpec(channels=16, temporal_stride=4, spatial_stride=8))
