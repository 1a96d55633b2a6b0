"""Following, smoothing and retargeting a motion: closed forms, and scipy's filter."""

import math

import numpy as np
import pytest
import torch
from scipy.signal import savgol_filter

from omnihuman_conditions.pose.keypoints import PoseSequence
from omnihuman_conditions.pose.preview import draw_preview
from omnihuman_conditions.pose.retarget import _BONES, _ROOT, _tree_order, retarget
from omnihuman_conditions.pose.smoothing import smooth
from omnihuman_conditions.pose.tracking import PoseEstimator, follow_person

FRAME = np.zeros((40, 80, 3), dtype=np.uint8)


def person(x: float, y: float, size: float = 10.0, score: float = 0.9) -> np.ndarray:
    """Points on a circle round (x, y), in pixels."""
    angle = np.linspace(0, 2 * math.pi, 133, endpoint=False)
    return np.stack([x + size * np.cos(angle), y + size * np.sin(angle), np.full(133, score)], -1)


def script(*answers: list[np.ndarray]) -> PoseEstimator:
    remaining = iter(answers)
    return lambda frame: np.stack(people) if (people := next(remaining)) else np.zeros((0, 133, 3))


def middles(sequence: PoseSequence) -> list[float]:
    return (sequence.keypoints[..., 0].mean(1) * 80 - 0.5).tolist()


def test_the_best_seen_person_is_followed_past_a_crossing_and_a_gap() -> None:
    estimator = script(
        [person(60, 20, size=4), person(20, 20)],
        [person(24, 20), person(50, 20)],
        [],
        # Whoever is larger now does not matter.
        [person(70, 20, size=18), person(28, 20, score=0.5)],
    )
    assert isinstance(estimator, PoseEstimator)
    sequence = follow_person(estimator, [FRAME] * 4, fps=25)
    np.testing.assert_allclose([middles(sequence)[i] for i in (0, 1, 3)], [20, 24, 28], atol=1e-3)
    assert sequence.keypoints[2, :, 2].max() == 0
    assert sequence.keypoints[3, :, 2].max() == pytest.approx(0.5)
    assert float(sequence.keypoints[0, 0, 1]) == pytest.approx(20.5 / 40)


def test_following_refuses() -> None:
    with pytest.raises(ValueError, match="nobody was found in any of the 2 frames"):
        follow_person(script([], []), [FRAME] * 2, fps=25)
    with pytest.raises(ValueError, match="no frame"):
        follow_person(script(), [], fps=25)
    with pytest.raises(ValueError, match=r"133 whole-body points, frame 0 has shape \(1, 17, 3\)"):
        follow_person(lambda frame: np.zeros((1, 17, 3)), [FRAME], fps=25)
    spoiled = person(20, 20)
    spoiled[3] = np.nan
    sequence = follow_person(script([spoiled]), [FRAME], fps=25)
    assert sequence.keypoints[0, 3].tolist() == pytest.approx([0.5 / 80, 0.5 / 40, 0])


def motion(frames: int, xy: torch.Tensor) -> PoseSequence:
    keypoints = torch.ones(frames, 133, 3)
    keypoints[..., :2] = xy
    return PoseSequence(keypoints=keypoints, fps=25)


def test_smoothing_keeps_a_parabola_and_takes_noise_out() -> None:
    time = torch.linspace(0, 1, 30)[:, None, None]
    clean = 0.3 + 0.4 * time - 0.2 * time**2 + torch.zeros(30, 133, 2)
    torch.testing.assert_close(
        smooth(motion(30, clean), window_seconds=0.28).keypoints, motion(30, clean).keypoints, atol=1e-5, rtol=0
    )
    noise = 0.01 * torch.randn(30, 133, 2, generator=torch.Generator().manual_seed(0))
    smoothed = smooth(motion(30, clean + noise), window_seconds=0.28)
    expected = savgol_filter((clean + noise).double().numpy(), 7, 2, axis=0)
    np.testing.assert_allclose(smoothed.keypoints[..., :2].numpy(), expected, atol=1e-6)
    assert (smoothed.keypoints[..., :2] - clean).std() < 0.8 * noise.std()


def test_gaps_split_runs_and_short_runs_stay() -> None:
    noisy = motion(20, torch.rand(20, 133, 2, generator=torch.Generator().manual_seed(1)))
    keypoints = noisy.keypoints.clone()
    keypoints[9, 0, 2] = 0
    keypoints[11, 0, 2] = 0
    got = smooth(PoseSequence(keypoints=keypoints, fps=25), window_seconds=0.28).keypoints
    values = keypoints[:, 0, :2].double().numpy()
    np.testing.assert_allclose(got[:9, 0, :2].numpy(), savgol_filter(values[:9], 7, 2, axis=0), atol=1e-6)
    assert torch.equal(got[9:12, 0], keypoints[9:12, 0])
    assert torch.equal(got[..., 2], keypoints[..., 2])


def test_smoothing_off() -> None:
    sequence = motion(5, torch.rand(5, 133, 2))
    assert smooth(sequence, window_seconds=0.0) is sequence
    with pytest.raises(ValueError, match="window_seconds >= 0"):
        smooth(sequence, window_seconds=-1)


def build(lengths: dict[str, float], angles: torch.Tensor, root: torch.Tensor) -> torch.Tensor:
    """Points (T, 133, 2) of a person with given bone lengths and directions ``angles`` (T, 133) at ``root`` (T, 2)."""
    points = torch.zeros(angles.shape[0], 134, 2, dtype=torch.float64)
    points[:, _ROOT] = root
    for child in _tree_order():
        parent, group = _BONES[child]
        step = torch.stack([angles[:, child].cos(), angles[:, child].sin()], -1)
        points[:, child] = points[:, parent] + lengths[group] * step
    return points[:, :133]


GROUPS = sorted({group for _, group in _BONES.values()})


def random_motion(seed: int, scale: float = 1.0) -> tuple[dict[str, float], torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = {group: scale * float(0.05 + 0.05 * torch.rand(1, generator=generator)) for group in GROUPS}
    angles = 6.28 * torch.rand(6, 133, generator=generator, dtype=torch.float64)
    # The root is the middle of the shoulders, so they lie opposite each other.
    angles[:, 6] = angles[:, 5] + math.pi
    root = 0.4 + 0.2 * torch.rand(6, 2, generator=generator, dtype=torch.float64)
    return lengths, angles, root


def pose(points: torch.Tensor, aspect: float) -> torch.Tensor:
    xy = points / torch.tensor([aspect, 1.0], dtype=torch.float64)
    return torch.cat([xy, torch.full((*xy.shape[:-1], 1), 0.9, dtype=torch.float64)], -1)


def test_a_motion_onto_its_own_person_stays() -> None:
    driver = pose(build(*random_motion(0)), 1.5)
    got = retarget(driver, driver[0], driver_aspect=1.5, reference_aspect=1.5)
    torch.testing.assert_close(got, driver, atol=1e-9, rtol=0)


def test_bones_take_the_reference_lengths_and_keep_their_directions() -> None:
    """Closed form: the same directions with the other person's lengths, moved by the ratio of the whole body."""
    lengths, angles, root = random_motion(1)
    other = {group: length * (0.8 + 0.05 * index) for index, (group, length) in enumerate(lengths.items())}
    place = torch.tensor([0.7, 0.3], dtype=torch.float64)
    still_angles = random_motion(2)[1][:1]
    reference = pose(build(other, still_angles, place[None]), 0.5)[0]
    got = retarget(pose(build(lengths, angles, root), 2.0), reference, driver_aspect=2.0, reference_aspect=0.5)

    def bones(group: str) -> int:
        return sum(name == group for _, name in _BONES.values())

    body = [group for group in GROUPS if group not in ("face", "hands", "feet")]
    whole = sum(bones(g) * other[g] for g in body) / sum(bones(g) * lengths[g] for g in body)
    expected = pose(build(other, angles, place + whole * (root - root[0])), 0.5)
    torch.testing.assert_close(got, expected, atol=1e-9, rtol=0)


def test_hidden_kinds_take_the_ratio_of_the_body_and_hidden_joints_are_passed_over() -> None:
    lengths, angles, root = random_motion(3)
    points = build(lengths, angles, root)
    driver = pose(points, 1.0)
    reference = pose(build({g: 1.2 * n for g, n in lengths.items()}, angles, root), 1.0)[0]
    reference[[*range(13, 23), *range(91, 133)], 2] = 0
    driver[3, 7, 2] = 0
    got = retarget(driver, reference, driver_aspect=1.0, reference_aspect=1.0)
    centre = reference[[5, 6], :2].mean(0)
    expected = centre + 1.2 * (points - driver[0, [5, 6], :2].mean(0))
    # Everything scales by the same number here, so the place of a point does not depend on the joint it hangs on.
    torch.testing.assert_close(got[..., :2], expected, atol=1e-9, rtol=0)
    assert torch.equal(got[..., 2], driver[..., 2])


def test_frames_without_shoulders_move_as_one() -> None:
    lengths, angles, root = random_motion(4)
    driver = pose(build(lengths, angles, root), 1.0)
    driver[2, :, 2] = 0
    driver[2, 0, 2] = 0.9
    reference = driver[0].clone()
    reference[:, :2] += 0.1
    got = retarget(driver, reference, driver_aspect=1.0, reference_aspect=1.0)
    torch.testing.assert_close(got[2, 0, :2], driver[2, 0, :2] + 0.1, atol=1e-9, rtol=0)


def test_a_foreshortened_arm_is_not_believed() -> None:
    lengths, angles, root = random_motion(5)
    driver = pose(build(lengths, angles, root), 1.0)
    short = dict(lengths, forearms=lengths["forearms"] * 0.01)
    reference = pose(build(short, angles, root), 1.0)[0]
    got = retarget(driver, reference, driver_aspect=1.0, reference_aspect=1.0)
    forearm = (got[:, 9, :2] - got[:, 7, :2]).norm(dim=-1)
    assert float(forearm.min()) > 0.4 * lengths["forearms"]


def test_retargeting_refuses() -> None:
    driver = pose(build(*random_motion(6)), 1.0)
    hidden = driver[0].clone()
    hidden[5, 2] = 0
    with pytest.raises(ValueError, match="reference pose must show both shoulders"):
        retarget(driver, hidden, driver_aspect=1.0, reference_aspect=1.0)
    with pytest.raises(ValueError, match="driving video never shows both shoulders"):
        retarget(hidden[None], driver[0], driver_aspect=1.0, reference_aspect=1.0)
    with pytest.raises(ValueError, match="aspects must be positive"):
        retarget(driver, driver[0], driver_aspect=0.0, reference_aspect=1.0)
    with pytest.raises(ValueError, match="driver keypoints"):
        retarget(driver[0], driver[0], driver_aspect=1.0, reference_aspect=1.0)
    with pytest.raises(ValueError, match="reference keypoints"):
        retarget(driver, driver, driver_aspect=1.0, reference_aspect=1.0)
    flat = torch.ones(1, 133, 3)
    with pytest.raises(ValueError, match="share no bone"):
        retarget(flat, flat[0], driver_aspect=1.0, reference_aspect=1.0)


def test_preview_draws_over_the_frames() -> None:
    keypoints = torch.zeros(2, 133, 3)
    keypoints[:, 5] = torch.tensor([0.25, 0.5, 1.0])
    keypoints[:, 7] = torch.tensor([0.75, 0.5, 1.0])
    frames = [np.full((40, 80, 3), 200, dtype=np.uint8)] * 3
    drawn = list(draw_preview(frames, PoseSequence(keypoints=keypoints, fps=25)))
    assert len(drawn) == 2
    assert drawn[0].dtype == np.uint8
    changed = (drawn[0] != 200).any(-1)
    assert changed[19:21, 22:58].all()
    assert not changed[:15].any()
    assert not changed[25:].any()
