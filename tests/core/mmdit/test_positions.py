"""Rotary positions of the packed sequence (paper section 3.2)."""

import pytest
import torch

from omnihuman_core.mmdit.positions import append_text, grid_ids, reference_ids, rope_table


def test_grid_counts_columns_fastest_then_rows_then_frames():
    ids = grid_ids((2, 2, 3))
    assert ids.shape == (12, 3)
    assert ids[:4].tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0]]
    assert ids[-1].tolist() == [1, 1, 2]


def test_temporal_component_of_the_reference_is_zero_and_space_is_kept():
    ids = reference_ids((2, 2, 3), slot=0)
    assert (ids[:, 0] == 0).all()
    assert torch.equal(ids[:6, 1:], grid_ids((1, 2, 3))[:, 1:])
    assert torch.equal(ids[6:], ids[:6])


def test_reference_slot_moves_time_only():
    assert (reference_ids((1, 2, 2), slot=-1)[:, 0] == -1).all()
    assert torch.equal(reference_ids((1, 2, 2), slot=7)[:, 1:], grid_ids((1, 2, 2))[:, 1:])


def test_table_is_the_closed_form_with_one_split_of_the_head_per_axis():
    ids = torch.tensor([[3.0, 5.0, 7.0]])
    cos, sin = rope_table(ids, dims=(4, 6, 6), theta=256.0)
    angles = [3 * 256 ** (-2 * i / 4) for i in range(2)]
    angles += [5 * 256 ** (-2 * i / 6) for i in range(3)] + [7 * 256 ** (-2 * i / 6) for i in range(3)]
    want = torch.tensor([angles], dtype=torch.float64)
    torch.testing.assert_close(cos.double(), want.cos(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sin.double(), want.sin(), atol=1e-5, rtol=1e-5)


def test_table_is_that_of_diffusers():
    hunyuan = pytest.importorskip("diffusers.models.transformers.transformer_hunyuan_video")
    want = hunyuan.HunyuanVideoRotaryPosEmbed(2, 1, [4, 6, 6], 256.0)(torch.zeros(1, 4, 3, 8, 6))
    got = rope_table(grid_ids((3, 4, 3)), dims=(4, 6, 6), theta=256.0)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine.repeat_interleave(2, dim=1), theirs, atol=1e-6, rtol=1e-6)


def test_text_is_not_rotated():
    cos, sin = append_text(torch.zeros(3, 4), torch.ones(3, 4), 2)
    assert (cos[3:] == 1).all()
    assert (sin[3:] == 0).all()
    assert cos.shape == sin.shape == (5, 4)
