"""Operations on conditions: map, where, stack, to."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from omnihuman_core.contracts.backbone import BackboneSpec
from omnihuman_core.contracts.conditioning import (
    AudioCondition,
    Conditioning,
    MotionCondition,
    PoseCondition,
    ReferenceCondition,
    TextCondition,
)


def everything(batch: int, value: float = 1.0) -> Conditioning:
    return Conditioning(
        text=TextCondition(
            tokens=torch.full((batch, 3, 2), value),
            mask=torch.full((batch, 3), value > 0),
            pooled=torch.full((batch, 4), value),
        ),
        audio=AudioCondition(tokens=torch.full((batch, 2, 4, 5), value)),
        pose=PoseCondition(features=torch.full((batch, 3, 2, 2, 2), value)),
        reference=ReferenceCondition(latents=torch.full((batch, 6, 1, 2, 2), value)),
        motion=MotionCondition(latents=torch.full((batch, 6, 1, 2, 2), value)),
    )


def _tensors(part) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(part).items() if isinstance(value, torch.Tensor)}


def words(*counts: int, length: int = 6) -> TextCondition:
    return TextCondition(
        tokens=torch.randn(len(counts), length, 2), mask=torch.arange(length) < torch.tensor(counts)[:, None]
    )


def test_where_keeps_and_drops_per_sample():
    keep = torch.tensor([True, False, True])
    for name, part in everything(3, 1.0).parts().items():
        mixed = part.where(keep, getattr(everything(3, -1.0), name))
        for field, value in _tensors(mixed).items():
            expected = keep if value.dtype == torch.bool else torch.where(keep, 1.0, -1.0).to(value.dtype)
            assert torch.equal(value.flatten(1)[:, 0], expected), (name, field)
            assert torch.equal(value, value[(...,) + (slice(0, 1),)].expand_as(value)), (name, field)


def test_where_takes_the_dtype_of_the_kept_part():
    part = everything(2).audio
    null = everything(2, -1.0).to(torch.bfloat16).audio
    assert part.where(torch.tensor([True, False]), null).tokens.dtype == torch.float32


def test_stack_then_slice_is_the_identity():
    one, two = everything(1, 1.0), everything(2, -1.0)
    stacked = Conditioning.stack([one, two])
    assert {part.batch_size for part in stacked.parts().values()} == {3}
    for original, piece in ((one, slice(0, 1)), (two, slice(1, 3))):
        cut = stacked.map(lambda value, piece=piece: value[piece])
        for name, part in original.parts().items():
            for field, value in _tensors(part).items():
                assert torch.equal(value, getattr(getattr(cut, name), field))


def test_stack_refuses_different_parts():
    with pytest.raises(ValueError, match="different parts"):
        Conditioning.stack([everything(1), Conditioning(audio=everything(1).audio)])


def test_to_casts_floats_and_leaves_masks():
    cast = everything(2).to(torch.float64)
    assert cast.text.mask.dtype == torch.bool
    assert {cast.text.tokens.dtype, cast.text.pooled.dtype, cast.pose.features.dtype} == {torch.float64}


def test_absent_parts_stay_absent():
    only_audio = Conditioning(audio=everything(2).audio)
    assert set(only_audio.parts()) == {"audio"}
    assert set(only_audio.to(torch.float64).parts()) == {"audio"}
    assert Conditioning().parts() == {}


def test_batch_sizes_must_agree():
    with pytest.raises(ValueError, match="one batch size.*'audio': 2.*'pose': 3"):
        Conditioning(audio=everything(2).audio, pose=everything(3).pose)


def test_wrong_rank_is_named():
    with pytest.raises(ValueError, match=r"audio.tokens must have shape \(B, t, A, D\), got \(2, 3, 4\)"):
        AudioCondition(tokens=torch.zeros(2, 3, 4))


SPEC = BackboneSpec(
    latent_channels=6,
    spatial_multiple=2,
    temporal_multiple=1,
    conditions=frozenset({"text", "audio", "pose", "reference", "motion"}),
    text_dim=2,
    pooled_dim=4,
    audio_dim=5,
    pose_channels=3,
)


def test_spec_accepts_what_fits():
    # One motion frame and one noisy frame are the two that audio and pose cover.
    SPEC.check(torch.zeros(2, 6, 1, 2, 2), everything(2))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 5, 1, 2, 2), r"latents must have shape \(B, 6, t, h, w\)"),
        ((2, 6, 1, 2, 3), "multiple of 1 and sides of 2"),
        ((2, 6, 3, 2, 2), r"audio condition covers 2 latent frames, motion \(1\) \+ video \(3\) are 4"),
    ],
)
def test_spec_refuses_what_does_not_fit(shape, message):
    with pytest.raises(ValueError, match=message):
        SPEC.check(torch.zeros(shape), everything(2))


def test_spec_refuses_unknown_conditions():
    with pytest.raises(ValueError, match="unknown conditions.*smell"):
        BackboneSpec(latent_channels=1, spatial_multiple=1, temporal_multiple=1, conditions=frozenset({"smell"}))


@pytest.mark.parametrize(("counts", "length", "padded"), [((4, 2), 4, True), ((3, 3), 3, False), ((6,), 6, False)])
def test_trimmed_text_ends_with_a_token_that_counts(counts, length, padded):
    text = words(*counts)
    trimmed = text.trimmed()
    assert torch.equal(trimmed.tokens, text.tokens[:, :length])
    assert torch.equal(trimmed.mask, text.mask[:, :length])
    assert trimmed.padded is padded


def test_a_text_in_which_nothing_counts_keeps_one_token_under_its_mask():
    trimmed = words(0, 0).trimmed()
    assert trimmed.mask.tolist() == [[False], [False]]
    assert trimmed.padded


def test_tokens_before_one_that_counts_stay():
    text = TextCondition(tokens=torch.randn(1, 4, 2), mask=torch.tensor([[False, True, True, False]]))
    assert text.trimmed().mask.tolist() == [[False, True, True]]
    assert text.trimmed().padded


def test_stack_of_texts_without_padding_has_none():
    same = Conditioning.stack([Conditioning(text=words(length).trimmed()) for length in (3, 3)])
    assert same.text.tokens.shape == (2, 3, 2)
    assert not same.text.padded
    mixed = Conditioning.stack([Conditioning(text=words(length).trimmed()) for length in (2, 5)])
    assert mixed.text.mask.sum(1).tolist() == [2, 5]
    assert mixed.text.padded
    kept = Conditioning.stack([Conditioning(text=words(3).trimmed()), Conditioning(text=words(2, length=3))])
    assert kept.text.padded


def test_what_is_known_of_a_text_survives_a_move():
    moved = Conditioning(text=words(3).trimmed()).to(torch.float64)
    assert moved.text.tokens.dtype == torch.float64
    assert not moved.text.padded


def test_a_dropped_text_keeps_the_mask_that_its_null_needs():
    text = words(3).trimmed()
    assert not text.padded
    null = TextCondition(tokens=torch.zeros_like(text.tokens), mask=torch.tensor([[True, False, False]]), pooled=None)
    text = replace(text, pooled=None)
    assert text.where(torch.tensor([False]), null).padded
    assert not text.where(torch.tensor([True]), text).padded
