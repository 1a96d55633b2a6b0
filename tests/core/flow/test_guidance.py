"""Guidance of paper section 3.4: formula, annealing, region, and what is never guided."""

from dataclasses import replace

import pytest
import torch

from omnihuman_core.contracts import (
    AudioCondition,
    Conditioning,
    MotionCondition,
    PoseCondition,
    ReferenceCondition,
    TextCondition,
)
from omnihuman_core.flow import Guidance, guided

SHAPE = (2, 4, 3, 4, 4)


class Recorder:
    """A backbone whose velocity is a sum over its conditions, and that remembers every call."""

    def __init__(self):
        self.calls = []

    def __call__(self, latents, sigma, conditioning):
        self.calls.append((latents, sigma, conditioning))
        total = latents * sigma.view(-1, 1, 1, 1, 1)
        for weight, name in enumerate(conditioning.parts(), start=1):
            values = next(iter(vars(getattr(conditioning, name)).values()))
            total = total + weight * values.flatten(1).mean(dim=1).view(-1, 1, 1, 1, 1)
        return total


def text(value, tokens=3):
    return TextCondition(tokens=torch.full((2, tokens, 5), value), mask=torch.ones(2, tokens, dtype=torch.bool))


def everything(value, tokens=3):
    return Conditioning(
        text=text(value, tokens),
        audio=AudioCondition(tokens=torch.full((2, 4, 2, 5), value)),
        pose=PoseCondition(features=torch.full((2, 3, 4, 4, 4), value)),
        reference=ReferenceCondition(latents=torch.full((2, 4, 1, 4, 4), value)),
        motion=MotionCondition(latents=torch.full((2, 4, 1, 4, 4), value)),
    )


def branches():
    torch.manual_seed(0)
    return torch.randn(3, *SHAPE)


def sigmas(first=0.5, second=0.25):
    return torch.tensor([first, second])


def test_default_is_the_papers():
    guidance = Guidance()
    assert (guidance.scale, guidance.mode, guidance.schedule) == (6.5, "joint", "constant")


def test_joint_formula():
    negative, positive, _ = branches()
    want = negative + 6.5 * (positive - negative)
    torch.testing.assert_close(Guidance().combine(negative, positive, sigmas()), want)


def test_split_formula():
    negative, positive, words = branches()
    guidance = Guidance(mode="split", scale=5.0, text_scale=3.0)
    want = negative + 3.0 * (words - negative) + 5.0 * (positive - words)
    torch.testing.assert_close(guidance.combine(negative, positive, sigmas(), text=words), want)


def test_split_with_one_scale_is_joint():
    negative, positive, words = branches()
    split = Guidance(mode="split", scale=4.0).combine(negative, positive, sigmas(), text=words)
    torch.testing.assert_close(split, Guidance(scale=4.0).combine(negative, positive, sigmas()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("schedule", "middle"), [("constant", 6.0), ("linear", 4.0), ("cosine", 4.0)])
def test_scale_goes_from_start_to_end(schedule, middle):
    guidance = Guidance(scale=6.0, schedule=schedule, end_scale=None if schedule == "constant" else 2.0)
    end = 6.0 if schedule == "constant" else 2.0
    got = guidance.scale_at(6.0, torch.tensor([1.0, 0.5, 0.0]))
    torch.testing.assert_close(got, torch.tensor([6.0, middle, end]), atol=1e-5, rtol=1e-5)


def test_cosine_is_flat_at_both_ends():
    guidance = Guidance(scale=6.0, schedule="cosine", end_scale=2.0)
    near = guidance.scale_at(6.0, torch.tensor([0.75, 0.25]))
    torch.testing.assert_close(near, torch.tensor([4 + 2**0.5, 4 - 2**0.5]), atol=1e-5, rtol=1e-5)


def test_each_sample_has_the_scale_of_its_level():
    negative, positive, _ = branches()
    out = Guidance(scale=3.0, schedule="linear", end_scale=1.0).combine(negative, positive, sigmas(1.0, 0.0))
    torch.testing.assert_close(out[0], negative[0] + 3 * (positive[0] - negative[0]))
    torch.testing.assert_close(out[1], positive[1])


def test_rescale_restores_the_positive_branchs_deviation():
    negative, positive, _ = branches()
    out = Guidance(rescale=1.0).combine(negative, positive, sigmas())
    torch.testing.assert_close(out.flatten(1).std(dim=1), positive.flatten(1).std(dim=1))
    pipelines = pytest.importorskip("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion")
    plain = Guidance().combine(negative, positive, sigmas())
    want = pipelines.rescale_noise_cfg(plain, positive, guidance_rescale=0.7)
    torch.testing.assert_close(Guidance(rescale=0.7).combine(negative, positive, sigmas()), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rescale", [0.0, 0.7])
@pytest.mark.parametrize("mode", ["joint", "split"])
def test_outside_the_region_nothing_is_guided_bit_for_bit(dtype, rescale, mode):
    negative, positive, words = branches().to(dtype)
    negative.view(-1)[::5] = -0.0
    region = torch.zeros(1, 1, 1, 4, 4)
    region[..., :2], region[..., 2] = 1.0, 0.5
    guidance = Guidance(region=region, rescale=rescale, mode=mode)
    out = guidance.combine(negative, positive, sigmas(), text=words)
    bits = {torch.float32: torch.int32, torch.bfloat16: torch.int16}[dtype]
    assert torch.equal(out[..., 3].contiguous().view(bits), negative[..., 3].contiguous().view(bits))
    whole = replace(guidance, region=None).combine(negative, positive, sigmas(), text=words)
    assert torch.equal(out[..., :2], whole[..., :2])
    half = (negative[..., 2].float() + whole[..., 2].float()) / 2
    torch.testing.assert_close(out[..., 2].float(), half, atol=0.05 if dtype == torch.bfloat16 else 1e-5, rtol=0.02)


def test_region_may_move_with_time_and_differ_by_sample():
    negative, positive, _ = branches()
    region = torch.zeros(2, 1, 3, 4, 4)
    region[1, :, 2] = 1.0
    out = Guidance(region=region).combine(negative, positive, sigmas())
    assert torch.equal(out[0], negative[0])
    assert torch.equal(out[1, :, :2], negative[1, :, :2])
    assert not torch.isclose(out[1, :, 2], negative[1, :, 2]).all()


@pytest.mark.parametrize("mode", ["joint", "split"])
def test_pose_reference_and_motion_are_in_every_branch(mode):
    backbone, latents = Recorder(), torch.randn(SHAPE)
    guided(backbone, latents, sigmas(), everything(1.0), everything(-9.0), Guidance(mode=mode))
    (_, _, seen), branch_count = backbone.calls[0], 2 if mode == "joint" else 3
    for tensor in (seen.pose.features, seen.reference.latents, seen.motion.latents):
        assert tensor.shape[0] == 2 * branch_count
        assert (tensor == 1.0).all()
    assert (seen.audio.tokens[:2] == -9.0).all()
    assert (seen.text.tokens[:2] == -9.0).all()


@pytest.mark.parametrize("mode", ["joint", "split"])
def test_pose_has_no_influence_on_the_guided_difference(mode):
    latents, guidance = torch.randn(SHAPE), Guidance(mode=mode, scale=6.5)
    backbone = Recorder()
    plain = guided(backbone, latents, sigmas(), everything(1.0), everything(0.0), guidance)
    moved = replace(everything(1.0), pose=PoseCondition(features=torch.full((2, 3, 4, 4, 4), 2.0)))
    shifted = guided(backbone, latents, sigmas(), moved, everything(0.0), guidance)
    # The recorder weighs the third condition, pose, by 3; guidance must not scale that by 6.5.
    torch.testing.assert_close(shifted - plain, torch.full(SHAPE, 3.0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", ["joint", "split"])
def test_batched_branches_equal_branches_in_turn(mode):
    latents, guidance = torch.randn(SHAPE), Guidance(mode=mode, scale=3.0)
    together, apart = Recorder(), Recorder()
    args = latents, sigmas(), everything(1.0), everything(0.0), guidance
    torch.testing.assert_close(guided(together, *args), guided(apart, *args, batch_branches=False))
    assert (len(together.calls), len(apart.calls)) == (1, 2 if mode == "joint" else 3)


def test_negatives_of_another_shape_run_on_their_own():
    backbone = Recorder()
    negative = replace(everything(0.0), audio=AudioCondition(tokens=torch.zeros(2, 4, 3, 5)))
    guided(backbone, torch.randn(SHAPE), sigmas(), everything(1.0), negative, Guidance())
    assert len(backbone.calls) == 2


def test_a_shorter_text_is_filled_up_in_one_batch():
    backbone, known = Recorder(), replace(text(0.0, tokens=1), padded=False)
    negative = replace(everything(0.0), text=known)
    guided(backbone, torch.randn(SHAPE), sigmas(), everything(1.0), negative, Guidance())
    seen = backbone.calls[0][2].text
    assert seen.mask.tolist() == [[True, False, False]] * 2 + [[True] * 3] * 2
    assert seen.padded


def test_long_clips_run_a_branch_after_the_other():
    short, long = Recorder(), Recorder()
    rest = sigmas(), everything(1.0), everything(0.0), Guidance()
    guided(short, torch.zeros(2, 1, 4, 64, 64), *rest)
    guided(long, torch.zeros(2, 1, 5, 64, 64), *rest)
    assert (len(short.calls), len(long.calls)) == (1, 2)


def test_negative_may_depend_on_the_level():
    levels = []

    def negative(sigma):
        levels.append(sigma)
        return everything(0.0)

    latents = torch.randn(SHAPE)
    got = guided(Recorder(), latents, sigmas(), everything(1.0), negative, Guidance())
    assert torch.equal(levels[0], sigmas())
    assert torch.equal(got, guided(Recorder(), latents, sigmas(), everything(1.0), everything(0.0), Guidance()))


def test_scale_one_needs_one_branch():
    backbone, latents = Recorder(), torch.randn(SHAPE)
    out = guided(backbone, latents, sigmas(), everything(1.0), everything(0.0), Guidance(scale=1.0))
    assert len(backbone.calls) == 1
    assert torch.equal(out, Recorder()(latents, sigmas(), everything(1.0)))
    assert Guidance(scale=1.0, region=torch.ones(1, 1, 1, 4, 4)).active
    assert Guidance(scale=1.0, schedule="linear", end_scale=2.0).active


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": -1.0}, "scale"),
        ({"scale": float("nan")}, "scale"),
        ({"mode": "triple"}, "mode"),
        ({"schedule": "square"}, "schedule"),
        ({"schedule": "linear"}, "end_scale"),
        ({"text_scale": 2.0}, "text_scale"),
        ({"rescale": 1.5}, "rescale"),
        ({"region": torch.ones(4, 4)}, "region"),
        ({"region": torch.full((1, 1, 1, 4, 4), 2.0)}, "region"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**settings)
