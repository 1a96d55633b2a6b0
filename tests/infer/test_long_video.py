import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnihuman_infer.long_video import plan_segments


@given(total=st.integers(1, 400), segment=st.integers(1, 40), data=st.data())
def test_segments_cover_the_clip_once(total: int, segment: int, data: st.DataObject) -> None:
    motion = data.draw(st.integers(0, segment - 1))
    segments = plan_segments(total, segment, motion)
    kept = [frame for s in segments for frame in range(s.start, s.start + s.keep)]
    assert kept == list(range(total))
    assert all(len(s.window) == segment for s in segments)
    assert [s.motion for s in segments] == [0] + [motion] * (len(segments) - 1)
    assert all(s.stop == later.start for s, later in zip(segments, segments[1:], strict=False))
    assert all(s.keep == s.new_frames for s in segments[:-1])
    assert [s.index for s in segments] == list(range(len(segments)))
    # Motion frames exist: they were made before.
    assert all(s.window.start >= 0 for s in segments)


@given(short=st.integers(1, 100), more=st.integers(1, 100))
def test_start_of_a_clip_does_not_depend_on_its_length(short: int, more: int) -> None:
    one, two = plan_segments(short, 13, 2), plan_segments(short + more, 13, 2)
    assert [s.window for s in one] == [s.window for s in two[: len(one)]]


def test_paper_lengths() -> None:
    # 49 frames of which 5 are motion: 13 latent frames, 2 of them motion. 4 s at 25 fps are 26 latent frames.
    segments = plan_segments(26, 13, 2)
    assert [(s.start, s.stop, s.motion, s.keep) for s in segments] == [(0, 13, 0, 13), (13, 24, 2, 11), (24, 35, 2, 2)]


def test_wrong_lengths() -> None:
    for arguments in ((0, 13, 2), (10, 2, 2), (10, 13, -1)):
        with pytest.raises(ValueError, match="latent"):
            plan_segments(*arguments)
