"""Samplers against the closed-form flow of a Gaussian target.

For data ``N(m, s^2)`` the marginal at sigma is normal with mean ``(1 - sigma) m`` and variance ``(1 - sigma)^2 s^2 +
sigma^2``; the flow keeps the standard score, so noise ``e`` ends at ``m + s e`` exactly.
"""

import math

import pytest
import torch

from omnihuman_core.flow import SAMPLERS, sample_dpmpp_2m, sample_euler, sample_heun, schedule

MEAN, STD = 0.7, 0.4


def velocity(latents, sigma):
    level = sigma.double().view(-1, 1, 1, 1, 1)
    keep = 1 - level
    variance = keep**2 * STD**2 + level**2
    score = (latents.double() - keep * MEAN) / variance
    return (level * score - MEAN - keep * STD**2 * score).to(latents.dtype)


def noise():
    return torch.randn(2, 1, 2, 3, 3, generator=torch.Generator().manual_seed(0))


def exact(score, sigma):
    """State at a level of the trajectory with the given standard score."""
    return (1 - sigma) * MEAN + math.hypot((1 - sigma) * STD, sigma) * score


def error(sampler, sigmas):
    score = noise().double()
    end = sampler(velocity, exact(score, sigmas[0].item()).float(), sigmas)
    return (end - exact(score, sigmas[-1].item())).abs().max().item()


@pytest.mark.parametrize(
    ("sampler", "order"), [(sample_euler, 1), (sample_heun, 2), (sample_dpmpp_2m, 2)], ids=["euler", "heun", "dpmpp_2m"]
)
def test_order_of_convergence(sampler, order):
    coarse, fine = (error(sampler, torch.linspace(0.9, 0.1, steps + 1)) for steps in (24, 48))
    assert order - 0.25 < math.log2(coarse / fine) < order + 0.5


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_whole_schedule_ends_at_the_target(sampler):
    assert error(sampler, schedule(64)) < 0.04
    if sampler is not sample_euler:
        assert error(sampler, schedule(16)) < error(sample_euler, schedule(16)) / 2


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_a_straight_path_is_followed_exactly(sampler):
    start, x0 = noise(), torch.full((2, 1, 2, 3, 3), 0.3)
    end = sampler(
        lambda latents, sigma: (latents - x0) / sigma.view(-1, 1, 1, 1, 1).clamp(min=1e-9), start, schedule(3)
    )
    if sampler is not sample_heun:
        torch.testing.assert_close(end, x0, atol=1e-6, rtol=1e-5)
    end = sampler(lambda latents, sigma: start - x0, start, schedule(3))
    torch.testing.assert_close(end, x0, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_contract_of_a_sampler(sampler):
    seen, levels = [], []

    def predict(latents, sigma):
        assert latents.dtype == torch.bfloat16
        assert sigma.shape == (2,)
        levels.append(sigma[0].item())
        return velocity(latents, sigma)

    start = noise().bfloat16()
    end = sampler(predict, start, schedule(5), callback=lambda step, latents: seen.append((step, latents.shape)))
    assert end.dtype == torch.bfloat16
    assert seen == [(step, start.shape) for step in range(5)]
    assert levels[0] == 1.0
    assert torch.equal(start, noise().bfloat16())


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("sigmas", [[1.0], [0.0, 1.0], [1.0, 0.5, 0.5]])
def test_levels_must_fall(sampler, sigmas):
    with pytest.raises(ValueError, match="falling"):
        sampler(velocity, noise(), torch.tensor(sigmas))


def test_dpmpp_2m_is_that_of_diffusers():
    schedulers = pytest.importorskip("diffusers")
    theirs = schedulers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0, final_sigmas_type="zero"
    )
    theirs.set_timesteps(8)
    sigmas = theirs.sigmas.float()
    latents = start = noise()
    for sigma, timestep in zip(sigmas[:-1], theirs.timesteps, strict=True):
        latents = theirs.step(velocity(latents, sigma.expand(2)), timestep, latents).prev_sample
    torch.testing.assert_close(sample_dpmpp_2m(velocity, start, sigmas), latents, atol=2e-5, rtol=1e-4)


class OnDevice(torch.Tensor):
    """Stands in for a tensor on a device that has no float64, and whose values the host has to wait for."""

    waits = 0

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        if function is torch.Tensor.double:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        if function in (torch.Tensor.__bool__, torch.Tensor.item, torch.Tensor.tolist):
            cls.waits += 1
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_steps_ask_nothing_of_the_device(sampler):
    waits = []

    def predict(latents, sigma):
        waits.append(OnDevice.waits)
        return velocity(latents.as_subclass(torch.Tensor), sigma.as_subclass(torch.Tensor))

    end = sampler(predict, noise(), schedule(5).as_subclass(OnDevice), callback=lambda *_: waits.append(OnDevice.waits))
    assert len(set(waits)) == 1
    assert torch.equal(end.as_subclass(torch.Tensor), sampler(velocity, noise(), schedule(5)))
