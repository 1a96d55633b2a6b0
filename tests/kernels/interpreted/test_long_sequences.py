"""Programs that take many rows, chunks or tiles each, as at real sizes: one multiprocessor has four programs."""

import functools

import pytest
import torch

from omnihuman_kernels import _launch, _segments
from omnihuman_kernels.gated_residual import gated_residual
from omnihuman_kernels.modulated_norm import modulated_norm, residual_modulated_norm
from omnihuman_kernels.qk_norm_rope import qk_norm_rope
from omnihuman_kernels.rms_norm_silu import rms_norm_silu
from tests.kernels import references
from tests.kernels.agreement import assert_agrees

EPS = 1e-6
# Of other lengths than any multiple of a chunk, which has rows by the number of programs.
SEGMENTS = (7, 61, 0, 35)


@pytest.fixture(autouse=True)
def one_multiprocessor(monkeypatch):
    monkeypatch.setattr(_launch, "MULTIPROCESSORS", 1)


def noise(*shape):
    torch.manual_seed(0)
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("programs", [1, 4])
@pytest.mark.parametrize(
    ("ours", "reference", "kinds"),
    [
        (gated_residual, references.gated_residual, "xxg"),
        (functools.partial(modulated_norm, eps=EPS), functools.partial(references.modulated_norm, eps=EPS), "xgg"),
        (
            functools.partial(residual_modulated_norm, eps=EPS),
            functools.partial(references.residual_modulated_norm, eps=EPS),
            "xxggg",
        ),
    ],
    ids=["gated_residual", "modulated_norm", "residual_modulated_norm"],
)
def test_chunks_of_many_rows(monkeypatch, ours, reference, kinds, programs):
    """Four programs for the four segments are a chunk each; sixteen are chunks of nine rows and more."""
    monkeypatch.setattr(_launch, "LOOPING_PROGRAMS", 4 * programs)
    rows = _segments.backward_rows(1, list(SEGMENTS), 4 * programs)
    assert rows == {1: 103, 4: 9}[programs]
    inputs = [noise(1, sum(SEGMENTS) if kind == "x" else len(SEGMENTS), 20) for kind in kinds]
    options = {"segments": SEGMENTS}
    assert_agrees(functools.partial(ours, **options), functools.partial(reference, **options), inputs, torch.float32)


def test_sums_over_more_chunks_than_a_program_takes_at_once():
    segments, rows, width = [260, 0, 4, 1300], 4, 37
    chunks = [-(-length // rows) for length in segments]
    assert max(chunks) > 2 * _segments.SUM_ROWS
    assert width > _segments.SUM_WIDTH
    partial = noise(2, 3, sum(chunks), width).float()
    expected = torch.stack([part.sum(2) for part in partial.split(chunks, dim=2)], dim=2)
    torch.testing.assert_close(_segments.sum_chunks(partial, segments, rows), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("segments", [None, (20, 0, 47)], ids=str)
def test_norm_and_rotation_of_many_tiles(segments):
    angles = noise(67, 8).float()
    weights = noise(2, 16) if segments is None else noise(2, len(segments), 16)

    def call(function, q, k, q_weight, k_weight):
        given = (q_weight, k_weight) if segments is None else (q_weight.unbind(), k_weight.unbind())
        tables = (x.to(torch.float32 if function is qk_norm_rope else q.dtype) for x in (angles.cos(), angles.sin()))
        return function(q, k, *given, *tables, eps=EPS, segments=segments)

    inputs = [*noise(2, 2, 67, 3, 16), *weights]
    ours, reference = (functools.partial(call, one) for one in (qk_norm_rope, references.qk_norm_rope))
    assert_agrees(ours, reference, inputs, torch.float32)


def test_norm_and_silu_of_many_tiles():
    ours, reference = (functools.partial(one, eps=EPS) for one in (rms_norm_silu, references.rms_norm_silu))
    assert_agrees(ours, reference, [noise(2, 5, 3, 16, 17), noise(5)], torch.float32)
