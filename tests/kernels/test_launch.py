"""How kernels are launched, on a GPU that is made up."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
import triton
from triton.runtime.errors import OutOfResources

from omnihuman_kernels import _launch


@pytest.fixture
def gpu(monkeypatch):
    """Notes what happens around the launches; the second of two devices holds the tensors."""
    seen = SimpleNamespace(current=0, launches=[], allocator=None)

    @contextmanager
    def device(which):
        before, seen.current = seen.current, which.index
        yield
        seen.current = before

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(triton, "set_allocator", lambda allocate: setattr(seen, "allocator", allocate))

    class Kernel:
        def __getitem__(self, grid):
            return lambda *args, **options: seen.launches.append((grid, seen.current, args, options))

    def run(grid, **options):
        _launch.launch(Kernel(), grid, SimpleNamespace(device=torch.device("cuda", 1)), 7, **options)

    seen.run = run
    return seen


def test_kernels_run_on_the_device_of_their_tensors(gpu):
    gpu.run((3, 2), BLOCK=4)
    assert gpu.launches == [((3, 2), 1, (7,), {"BLOCK": 4, "enable_fp_fusion": True})]
    assert gpu.current == 0
    assert gpu.allocator is None


def test_descriptors_find_scratch_memory(gpu, monkeypatch):
    """Triton has no allocator of its own and fails at the first launch without one."""
    gpu.run((3, 2), descriptors=True)
    monkeypatch.setattr(torch, "empty", lambda size, **options: (size, options))
    assert gpu.allocator(512, 128, None) == (512, {"dtype": torch.int8, "device": "cuda"})


def test_an_empty_grid_launches_nothing(gpu):
    gpu.run((3, 0, 2))
    assert not gpu.launches


@pytest.mark.parametrize(
    ("grid", "fits"),
    [
        ((2**31 - 1,), True),
        ((1, 65535, 32768), True),
        ((1, 65536), False),
        ((1, 1, 65536), False),
        # Two to the power of 32, which is nothing in 32 bits.
        ((4, 32768, 32768), False),
    ],
)
def test_a_grid_beyond_the_limits_of_cuda_is_refused(gpu, grid, fits):
    if fits:
        gpu.run(grid)
        assert gpu.launches
        return
    with pytest.raises(ValueError, match="the batch must fit a grid of 65535 programs") as error:
        gpu.run(grid)
    assert "\n" not in str(error.value)
    assert not gpu.launches


def test_a_kernel_too_large_for_a_gpu_is_refused_in_one_line(gpu):
    class Kernel:
        __module__, __name__ = "omnihuman_kernels.some_op", "backward_kernel"

        def __getitem__(self, grid):
            def run(*args, **options):
                raise OutOfResources(122880, 101376, "shared memory")

            return run

    with pytest.raises(ValueError, match="some_op.backward_kernel needs 122880 of shared memory") as error:
        _launch.launch(Kernel(), (1,), SimpleNamespace(device=torch.device("cuda", 0)))
    assert "this GPU has 101376: choose ops='eager'" in str(error.value)
    assert "\n" not in str(error.value)
