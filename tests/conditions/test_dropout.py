"""Dropping by the two principles of the paper: eligibility, and independent draws at the given ratios."""

import math

import pytest
import torch

from omnihuman_core.contracts.conditioning import (
    AudioCondition,
    Conditioning,
    MotionCondition,
    ReferenceCondition,
    TextCondition,
)
from omnihuman_core.dropout import draw_keep, drop, null_latents

PAPER = {"text": 0.9, "audio": 0.5, "pose": 0.25}
DRAWS = 20_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def within_binomial_bound(share: float, probability: float) -> bool:
    return abs(share - probability) < 5 * math.sqrt(probability * (1 - probability) / DRAWS)


def test_rates_and_independence() -> None:
    keep = draw_keep(DRAWS, PAPER, {}, generator())
    for name, ratio in PAPER.items():
        assert keep[name].dtype == torch.bool
        assert within_binomial_bound(keep[name].float().mean().item(), ratio), name
    # All eight joint events at the product of their rates: independent draws, pose without audio included.
    for code in range(8):
        event, probability = torch.ones(DRAWS, dtype=torch.bool), 1.0
        for bit, (name, ratio) in enumerate(PAPER.items()):
            on = bool(code >> bit & 1)
            event &= keep[name] == on
            probability *= ratio if on else 1 - ratio
        assert within_binomial_bound(event.float().mean().item(), probability), code
    assert (keep["pose"] & ~keep["audio"]).any()


def test_samples_of_a_batch_are_drawn_apart() -> None:
    audio = torch.stack([draw_keep(2, PAPER, {}, generator(seed))["audio"] for seed in range(300)])
    assert 0.4 < (audio[:, 0] == audio[:, 1]).float().mean() < 0.6


def test_ineligible_samples_never_keep_and_others_keep_their_draw() -> None:
    free = draw_keep(DRAWS, PAPER, {}, generator())
    has_audio = torch.arange(DRAWS) % 3 == 0
    keep = draw_keep(DRAWS, PAPER, {"audio": has_audio}, generator())
    assert torch.equal(keep["audio"], free["audio"] & has_audio)
    assert torch.equal(keep["text"], free["text"])
    assert torch.equal(keep["pose"], free["pose"])


def test_one_seed_one_draw_whatever_the_order() -> None:
    first = draw_keep(64, PAPER, {}, generator(3))
    second = draw_keep(64, dict(reversed(PAPER.items())), {}, generator(3))
    assert all(torch.equal(first[name], second[name]) for name in PAPER)
    assert any(not torch.equal(first[name], draw_keep(64, PAPER, {}, generator(4))[name]) for name in PAPER)


def test_ratios_of_zero_and_one_are_exact() -> None:
    keep = draw_keep(DRAWS, {"audio": 0.0, "text": 1.0}, {}, generator())
    assert not keep["audio"].any()
    assert keep["text"].all()


def test_draw_refuses() -> None:
    with pytest.raises(ValueError, match=r"audio must be in \[0, 1\]"):
        draw_keep(2, {"audio": 1.5}, {})
    with pytest.raises(ValueError, match="without a ratio: \\['sound'\\]"):
        draw_keep(2, PAPER, {"sound": torch.ones(2).bool()})
    with pytest.raises(ValueError, match=r"eligible\['audio'\]"):
        draw_keep(2, PAPER, {"audio": torch.ones(3).bool()})


def batch() -> Conditioning:
    return Conditioning(
        text=TextCondition(tokens=torch.ones(2, 3, 4), mask=torch.ones(2, 3).bool(), pooled=torch.ones(2, 5)),
        audio=AudioCondition(tokens=torch.ones(2, 2, 4, 6)),
        reference=ReferenceCondition(latents=torch.ones(2, 4, 1, 2, 2)),
    )


def test_drop_replaces_whole_parts_per_sample() -> None:
    given = batch()
    nulls = given.map(lambda value: torch.zeros_like(value))
    keep = {
        "text": torch.tensor([True, False]),
        "audio": torch.tensor([False, True]),
        "pose": torch.tensor([True, True]),
    }
    mixed = drop(given, nulls, keep)
    assert mixed.pose is None
    assert mixed.text is not None
    assert mixed.text.pooled is not None
    assert mixed.audio is not None
    for value in (mixed.text.tokens, mixed.text.mask.float(), mixed.text.pooled):
        assert value[0].min() == 1
        assert value[1].max() == 0
    assert mixed.audio.tokens.amax((1, 2, 3)).tolist() == [0, 1]
    assert mixed.reference is given.reference


def test_the_null_of_a_dropped_sample_gets_its_gradient() -> None:
    null = torch.zeros(4, 6, requires_grad=True)
    given = Conditioning(audio=AudioCondition(tokens=torch.ones(2, 3, 4, 6, requires_grad=True)))
    nulls = Conditioning(audio=AudioCondition(tokens=null.expand(2, 3, 4, 6)))
    mixed = drop(given, nulls, {"audio": torch.tensor([True, False])})
    assert mixed.audio is not None
    mixed.audio.tokens.sum().backward()
    assert given.audio is not None
    assert given.audio.tokens.grad is not None
    assert given.audio.tokens.grad.sum((1, 2, 3)).tolist() == [72, 0]
    assert null.grad is not None
    assert null.grad.eq(3).all()


def test_drop_refuses_a_missing_null() -> None:
    with pytest.raises(ValueError, match="no null given for the condition 'audio'"):
        drop(batch(), Conditioning(), {"audio": torch.ones(2).bool()})


def test_null_latents_are_zero_and_keep_the_type() -> None:
    for kind in (ReferenceCondition, MotionCondition):
        null = null_latents(kind(latents=torch.randn(2, 4, 1, 2, 2).bfloat16()))
        assert type(null) is kind
        assert null.latents.dtype == torch.bfloat16
        assert not null.latents.any()
