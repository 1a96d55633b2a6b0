import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omnihuman_infer.media.picture import Fit
from omnihuman_infer.request import RequestError
from omnihuman_infer.speaker import region_in_video, region_map


def test_map_is_one_inside_and_zero_outside() -> None:
    expected = torch.zeros(1, 1, 1, 4, 6)
    expected[..., 2:, :3] = 1
    assert torch.equal(region_map((0.0, 0.5, 0.5, 1.0), 4, 6), expected)
    assert region_map((0.0, 0.0, 1.0, 1.0), 4, 6).all()


@given(cut=st.floats(0.01, 0.99), height=st.integers(1, 20), width=st.integers(2, 20))
def test_two_halves_share_no_position(cut: float, height: int, width: int) -> None:
    halves = []
    for region in ((0.0, 0.0, cut, 1.0), (cut, 0.0, 1.0, 1.0)):
        try:
            halves.append(region_map(region, height, width))
        except RequestError:
            halves.append(torch.zeros(1, 1, 1, height, width))
    assert torch.equal(halves[0] + halves[1], torch.ones(1, 1, 1, height, width))


def test_region_follows_the_cut_of_the_picture() -> None:
    # The middle half of a 200 x 100 picture is shown.
    fit = Fit(width=64, height=64, box=(50.0, 0.0, 150.0, 100.0))
    assert region_in_video((0.25, 0.0, 0.5, 1.0), fit, (200, 100)) == (0.0, 0.0, 0.5, 1.0)
    outside = region_in_video((0.0, 0.0, 0.2, 1.0), fit, (200, 100))
    with pytest.raises(RequestError, match=r"^speaker_region: covers none"):
        region_map(outside, 8, 8)
