"""Skeleton maps: the right things at the right places, to a fraction of a pixel."""

from pathlib import Path

import pytest
import torch

from omnihuman_conditions.pose.files import save_pose
from omnihuman_conditions.pose.keypoints import LEFT_HAND, LIMBS, RIGHT_HAND, PoseSequence
from omnihuman_conditions.pose.skeleton import SkeletonConfig, SkeletonExtractor


def only(points: dict[int, tuple[float, float]], frames: int = 1, score: float = 1.0) -> torch.Tensor:
    keypoints = torch.zeros(frames, 133, 3)
    for index, place in points.items():
        keypoints[:, index] = torch.tensor([*place, score])
    return keypoints


def centroid(picture: torch.Tensor) -> tuple[float, float]:
    weight = picture.sum(0)
    rows, columns = torch.meshgrid(*(torch.arange(n) + 0.5 for n in weight.shape), indexing="ij")
    return ((columns * weight).sum() / weight.sum()).item(), ((rows * weight).sum() / weight.sum()).item()


@pytest.mark.parametrize("place", [(0.5, 0.5), (0.31, 0.72), (0.3142, 0.25)])
@pytest.mark.parametrize("size", [(64, 64), (96, 48)])
def test_a_hand_disc_lies_where_the_hand_is(place: tuple[float, float], size: tuple[int, int]) -> None:
    extractor = SkeletonExtractor(SkeletonConfig.tiny())
    maps = extractor.extract(only({LEFT_HAND[5]: place}), size=size)
    assert maps.shape == (3, 1, *size)
    x, y = centroid(maps[:, 0])
    assert x == pytest.approx(place[0] * size[1], abs=0.25)
    assert y == pytest.approx(place[1] * size[0], abs=0.25)


def test_a_slow_hand_moves_the_map_before_it_moves_a_pixel() -> None:
    extractor = SkeletonExtractor(SkeletonConfig.tiny())
    keypoints = torch.cat([only({91: (0.5 + shift / 64, 0.5)}) for shift in (0.0, 0.25, 0.5)])
    maps = extractor.extract(keypoints, size=(64, 64))
    columns = [centroid(maps[:, i])[0] for i in range(3)]
    assert columns[0] < columns[1] < columns[2]


def test_disc_uses_the_mean_of_the_hand_or_the_wrist() -> None:
    extractor = SkeletonExtractor(SkeletonConfig.tiny())
    hand = extractor.extract(
        only({RIGHT_HAND[3]: (0.4, 0.5), RIGHT_HAND[9]: (0.6, 0.5), 10: (0.1, 0.1)}), size=(64, 64)
    )
    assert centroid(hand[:, 0]) == pytest.approx((32, 32), abs=0.3)
    wrist = extractor.extract(only({10: (0.25, 0.25)}), size=(64, 64))
    assert centroid(wrist[:, 0]) == pytest.approx((16, 16), abs=0.3)


def test_limbs_and_hands_can_be_told_apart_by_colour() -> None:
    extractor = SkeletonExtractor(SkeletonConfig.tiny())
    seen = []
    for a, b in LIMBS:
        # Wrists would add a hand disc; a limb that ends in one is read off its other half.
        maps = extractor.extract(only({a: (0.2, 0.5), b: (0.8, 0.5)}), size=(64, 64))[:, 0]
        seen.append(tuple(round(v, 2) for v in maps[:, 31:33, 30:34].amax((1, 2)).tolist()))
    for hand in (LEFT_HAND[0], RIGHT_HAND[0]):
        maps = extractor.extract(only({hand: (0.5, 0.5)}), size=(64, 64))[:, 0]
        seen.append(tuple(round(v, 2) for v in maps[:, 31:33, 31:33].amax((1, 2)).tolist()))
    assert len(set(seen)) == len(seen)


def test_only_confident_and_finite_points_are_drawn() -> None:
    extractor = SkeletonExtractor(SkeletonConfig.tiny())
    arm = {5: (0.2, 0.5), 7: (0.8, 0.5)}
    assert extractor.extract(only(arm, score=0.31), size=(32, 32)).any()
    assert not extractor.extract(only(arm, score=0.29), size=(32, 32)).any()
    broken = only(arm)
    broken[0, 5, 0] = float("nan")
    assert not extractor.extract(broken, size=(32, 32)).any()
    assert not extractor.extract(only({5: (0.2, 0.5)}), size=(32, 32)).any()


def test_points_outside_the_picture_do_no_harm() -> None:
    extractor = SkeletonExtractor(SkeletonConfig.tiny())
    maps = extractor.extract(only({5: (0.5, 0.5), 7: (1e30, 0.5)}), size=(32, 32))
    assert maps[:, 0, 15:17, 20:].any()
    assert not extractor.extract(only({91: (5.0, 5.0)}), size=(32, 32)).any()


def test_face_is_left_to_the_voice_unless_asked_for() -> None:
    mouth = only({23 + i: (0.4 + 0.01 * (i - 48), 0.6) for i in range(48, 68)})
    assert not SkeletonExtractor(SkeletonConfig.tiny()).extract(mouth, size=(64, 64)).any()
    assert SkeletonExtractor(SkeletonConfig.full()).extract(mouth, size=(64, 64)).any()


def test_fingers_are_drawn_by_the_full_style() -> None:
    extractor = SkeletonExtractor(SkeletonConfig.full())
    finger = extractor.extract(only({91: (0.2, 0.5), 96: (0.8, 0.5)}), size=(64, 64))
    assert finger[:, 0, 31:33, 20:44].amax((0, 1)).min() > 0.3
    assert not extractor.extract(only({92: (0.2, 0.5), 96: (0.8, 0.5)}), size=(64, 64)).any()


def test_frames_are_drawn_apart() -> None:
    extractor = SkeletonExtractor(SkeletonConfig.tiny())
    keypoints = torch.rand(5, 133, 3, generator=torch.Generator().manual_seed(0))
    together = extractor.extract(keypoints, size=(48, 64))
    assert together.min() >= 0
    assert together.max() <= 1
    for i in range(5):
        assert torch.equal(extractor.extract(keypoints[i : i + 1], size=(48, 64))[:, 0], together[:, i])


def test_load_resamples_and_refusals(tmp_path: Path) -> None:
    extractor = SkeletonExtractor(SkeletonConfig.tiny())
    save_pose(PoseSequence(keypoints=torch.rand(10, 133, 3), fps=50), tmp_path / "a.npz")
    assert extractor.load(tmp_path / "a.npz").shape == (10, 133, 3)
    assert extractor.load(tmp_path / "a.npz", fps=25).shape == (5, 133, 3)
    with pytest.raises(ValueError, match=r"\(T, 133, 3\)"):
        extractor.extract(torch.zeros(2, 17, 3), size=(8, 8))
    for fields in ({"hands": "gloves"}, {"line_width": 0.0}, {"disc_radius": 2.0}):
        with pytest.raises(ValueError, match=f"SkeletonConfig.{next(iter(fields))}"):
            SkeletonConfig(**{**SkeletonConfig.tiny().__dict__, **fields})
