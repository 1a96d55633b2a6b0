"""Which device is touched before any work."""

from typing import Any

import pytest
import torch

from omnihuman_train.devices import check_device


@pytest.mark.parametrize(
    ("name", "local_rank", "touched"),
    [("cuda", "3", "cuda:3"), ("cuda", None, "cuda:0"), ("cuda:1", "3", "cuda:1"), ("cpu", "3", "cpu")],
)
def test_a_process_touches_no_gpu_but_its_own(
    monkeypatch: pytest.MonkeyPatch, name: str, local_rank: str | None, touched: str
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    seen, zeros = [], torch.zeros

    def touch(*sizes: int, device: Any) -> torch.Tensor:
        seen.append(str(device))
        return zeros(*sizes)

    monkeypatch.setattr(torch, "zeros", touch)
    check_device(name, "run.device")
    assert seen == [touched]


def test_a_device_that_is_not_there_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"run.device 'meta' cannot be used here .*give --set run.device=cpu"):
        check_device("meta", "run.device")
