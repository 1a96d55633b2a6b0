"""The Frechet distance against closed forms and scipy, and what its features see."""

import pytest
import scipy.linalg
import torch
from omni_conditions.frechet import features, frechet_distance


def samples(count: int = 400, width: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_distance_of_a_set_to_itself_is_zero() -> None:
    assert frechet_distance(samples(), samples()) == pytest.approx(0.0, abs=1e-6)


def test_distance_under_a_shift_is_its_square() -> None:
    shift = torch.tensor([1.0, -2.0, 0.0, 0.5, 0.0], dtype=torch.float64)
    assert frechet_distance(samples(), samples() + shift) == pytest.approx(float(shift.square().sum()), rel=1e-6)


def test_distance_of_scaled_axes_is_the_closed_form() -> None:
    """Uncorrelated sets: the sum of squared differences of standard deviations."""
    white = torch.linalg.qr(samples() - samples().mean(0))[0] * (len(samples()) - 1) ** 0.5
    first, second = torch.tensor([1.0, 2, 3, 4, 5]), torch.tensor([2.0, 2, 1, 5, 0.5])
    expected = float((first - second).square().sum())
    assert frechet_distance(white * first, white * second) == pytest.approx(expected, rel=1e-6)


def test_distance_is_that_of_scipys_matrix_root() -> None:
    mix = samples(5, 5, seed=3)
    first, second = samples(seed=1) @ mix, samples(300, seed=2) + 0.3
    one, two = torch.cov(first.T).numpy(), torch.cov(second.T).numpy()
    root = scipy.linalg.sqrtm(one @ two).real
    expected = float((first.mean(0) - second.mean(0)).square().sum()) + (one + two - 2 * root).trace()
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-5)


def test_sets_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="two sets"):
        frechet_distance(samples(), samples(width=4))
    with pytest.raises(ValueError, match="at least two"):
        frechet_distance(samples(), samples(1))


def clips(count: int = 6) -> torch.Tensor:
    noise = torch.rand(count, 3, 14, 8, 8, generator=torch.Generator().manual_seed(7)) * 2 - 1
    return torch.nn.functional.interpolate(noise, size=(14, 32, 32), mode="trilinear")


def test_features_are_the_same_whatever_was_drawn_before() -> None:
    torch.manual_seed(1)
    first = features(clips(), frames=1)
    torch.manual_seed(2)
    assert torch.equal(features(clips(), frames=1), first)
    assert first.shape == (6 * 14, 32)
    assert features(clips(), frames=7).shape == (6 * 2, 32)


@pytest.mark.parametrize("frames", [1, 7])
def test_distance_grows_with_the_damage(frames: int) -> None:
    truth = features(clips(), frames=frames)
    noise = torch.randn(clips().shape, generator=torch.Generator().manual_seed(9))
    distances = [frechet_distance(features(clips() + s * noise, frames=frames), truth) for s in (0.0, 0.1, 0.3)]
    assert distances[0] == pytest.approx(0.0, abs=1e-8)
    assert distances[0] < distances[1] < distances[2]


def test_only_the_video_features_see_the_order_of_frames() -> None:
    steady = clips()
    mixed = steady[:, :, torch.randperm(14, generator=torch.Generator().manual_seed(3))]
    by_frame = frechet_distance(features(mixed, frames=1), features(steady, frames=1))
    by_video = frechet_distance(features(mixed, frames=7), features(steady, frames=7))
    assert by_frame == pytest.approx(0.0, abs=1e-8)
    assert by_video > 1e-5
