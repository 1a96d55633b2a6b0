"""How rows are shared out to programs, by the number of multiprocessors of a GPU."""

from types import SimpleNamespace

import pytest
import torch

from omnihuman_kernels import _launch, _segments

# By public data sheets.
MULTIPROCESSORS = {"A100": 108, "H100": 132, "B200": 148}


@pytest.fixture
def gpu(monkeypatch):
    """Makes up a GPU with so many multiprocessors; gives a tensor on it, as far as anybody looks."""

    def make(count):
        _launch._multiprocessors.cache_clear()
        properties = SimpleNamespace(multi_processor_count=count)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
        return SimpleNamespace(device=torch.device("cuda", 0))

    yield make
    _launch._multiprocessors.cache_clear()


@pytest.mark.parametrize("name", MULTIPROCESSORS)
def test_programs_that_loop_come_in_whole_rounds(gpu, name):
    assert _launch.looping_programs(gpu(MULTIPROCESSORS[name])) == 4 * MULTIPROCESSORS[name]


def test_without_a_gpu_kernels_are_compiled_as_for_an_h100():
    assert _launch.looping_programs(torch.empty(0, device="meta")) == 4 * MULTIPROCESSORS["H100"]


@pytest.mark.parametrize("name", MULTIPROCESSORS)
@pytest.mark.parametrize(
    ("batch", "segments"), [(1, [1560, 49920, 256]), (2, [1560, 117244, 256]), (1, [8704]), (4, [0, 8448, 256])]
)
def test_chunks_fill_the_programs_of_a_gpu_and_no_more(name, batch, segments):
    programs = 4 * MULTIPROCESSORS[name]
    rows = _segments.backward_rows(batch, segments, programs)
    chunks = batch * _segments.num_chunks(segments, rows)
    # The rest ends together: a last round for a few chunks would take as long as a full one.
    assert 0.93 * programs <= chunks <= programs


@pytest.mark.parametrize(
    ("batch", "segments", "rows"), [(1, [1], 4), (0, [7, 3], 4), (3, [0], 4), (600, [5, 100], 63000)]
)
def test_few_rows_and_many_samples(batch, segments, rows):
    """A chunk has no fewer rows than in forward; where samples alone are too many, each segment is one chunk."""
    assert _segments.backward_rows(batch, segments, 4 * MULTIPROCESSORS["H100"]) == rows


def test_the_sum_of_chunks_keeps_memory_busy(monkeypatch):
    """By Little's law: 3 TB/s, and half a microsecond until a number arrives, are 1.5 MB under way at any time."""
    grids = []
    monkeypatch.setattr(_segments, "launch", lambda kernel, grid, *args, **options: grids.append(grid))
    chunks = 4 * MULTIPROCESSORS["H100"]
    _segments.sum_chunks(torch.empty(1, 1, chunks, 3072, device="meta"), [51736], 98)
    ((columns, samples, planes),) = grids
    assert columns * samples * planes * _segments.SUM_ROWS * _segments.SUM_WIDTH * 4 >= 1.5e6
    # A transaction of memory is 32 bytes; a warp asks for whole lines of 128.
    assert _segments.SUM_WIDTH * 4 % 128 == 0
