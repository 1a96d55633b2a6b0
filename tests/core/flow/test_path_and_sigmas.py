"""The equations of paper section 3.1 and of the public noise distributions."""

import math

import pytest
import torch
from scipy import stats

from omnihuman_core.flow import (
    interpolate,
    logit_normal,
    noise_from_velocity,
    resolution_shift,
    schedule,
    shift,
    uniform,
    velocity_target,
    x0_from_velocity,
)

SIGMA = torch.tensor([0.0, 0.25, 1.0])


def latents():
    torch.manual_seed(0)
    return torch.randn(2, 3, 4, 2, 5, 5)


def test_path_is_a_straight_line_from_data_to_noise():
    x0, noise = latents()
    x = interpolate(x0, noise, SIGMA)
    assert torch.equal(x[0], x0[0])
    torch.testing.assert_close(x[1], 0.75 * x0[1] + 0.25 * noise[1])
    assert torch.equal(x[2], noise[2])


def test_velocity_is_the_derivative_of_the_path():
    x0, noise = (part.double() for part in latents())
    ahead, behind = interpolate(x0, noise, SIGMA + 1e-3), interpolate(x0, noise, SIGMA - 1e-3)
    torch.testing.assert_close(velocity_target(x0, noise), (ahead - behind) / 2e-3, atol=1e-4, rtol=1e-4)
    assert torch.equal(velocity_target(x0, noise), noise - x0)


def test_velocity_gives_data_and_noise_back():
    x0, noise = latents()
    x, velocity = interpolate(x0, noise, SIGMA), velocity_target(x0, noise)
    torch.testing.assert_close(x0_from_velocity(x, velocity, SIGMA), x0, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(noise_from_velocity(x, velocity, SIGMA), noise, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0, 7.0])
def test_shift_multiplies_the_odds(factor):
    sigma = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    moved = shift(sigma, factor)
    torch.testing.assert_close(moved / (1 - moved), factor * sigma / (1 - sigma))
    assert shift(torch.tensor([0.0, 1.0]), factor).tolist() == [0.0, 1.0]


def test_resolution_shift_passes_through_its_two_anchors_and_grows():
    assert resolution_shift(256) == pytest.approx(math.exp(0.5))
    assert resolution_shift(4096) == pytest.approx(math.exp(1.15))
    assert resolution_shift(1024) < resolution_shift(8192)


def test_logit_normal_has_a_normal_logit():
    draws = logit_normal(4000, mean=0.3, std=1.2, generator=torch.Generator().manual_seed(0))
    assert draws.shape == (4000,)
    assert stats.kstest(torch.logit(draws.double()).numpy(), stats.norm(0.3, 1.2).cdf).pvalue > 1e-3


def test_uniform_is_uniform():
    draws = uniform(4000, generator=torch.Generator().manual_seed(0))
    assert stats.kstest(draws.numpy(), stats.uniform.cdf).pvalue > 1e-3


def test_same_generator_gives_the_same_levels():
    first, second = (logit_normal(8, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)


def test_schedule_falls_from_noise_to_data():
    torch.testing.assert_close(schedule(4), torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))
    torch.testing.assert_close(schedule(2, shift_factor=3.0), torch.tensor([1.0, 0.75, 0.0]))


def test_schedule_is_that_of_diffusers():
    schedulers = pytest.importorskip("diffusers")
    theirs = schedulers.FlowMatchEulerDiscreteScheduler(shift=7.0)
    theirs.set_timesteps(sigmas=schedule(10)[:-1].tolist())
    torch.testing.assert_close(schedule(10, shift_factor=7.0), theirs.sigmas.float(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("call", [lambda: shift(SIGMA, 0.0), lambda: schedule(0), lambda: resolution_shift(0)])
def test_bad_settings_are_refused(call):
    with pytest.raises(ValueError, match="must be"):
        call()
