"""Which device is touched before any work."""

from pathlib import Path
from typing import Any

import pytest
import torch

from omnihuman_train import model, parts
from omnihuman_train.devices import check_device
from omnihuman_train.distributed.mesh import World
from omnihuman_train.recipes.debug import debug


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


def test_the_latents_of_a_trained_vae_are_measured_where_it_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(vae: Any, *_: object) -> None:
        raise RuntimeError(f"measured on {vae.latents_mean.device}")

    config = debug()
    weights = model.build("video_vae", "causal", config.preset).state_dict()
    monkeypatch.setattr(parts, "join", lambda *_: World(device=torch.device("meta")))
    monkeypatch.setattr(parts, "_train", lambda *_: weights)
    for name in ("VideoBatches", "rendered_clips"):
        monkeypatch.setattr(parts, name, lambda *_, **__: None)
    monkeypatch.setattr(parts, "latent_statistics", measured)
    with pytest.raises(RuntimeError, match="measured on meta"):
        parts.train_vae(config, tmp_path)
