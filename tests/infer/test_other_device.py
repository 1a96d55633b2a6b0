"""The whole pipeline on a device that is not the CPU: no tensor, index or generator is left behind."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from omnihuman_infer import GenerateRequest, OmniHumanPipeline
from tests.other_device import other_device


def test_what_a_gpu_would_refuse_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with other_device(monkeypatch) as device:
        there = torch.ones(3, device=device)
        assert (there + 1.0).device == device
        assert (there * torch.tensor(2.0)).sum().item() == 6
        assert there[torch.tensor([0, 2])].tolist() == [1, 1]
        for wrong in (
            lambda: there + torch.ones(3),
            lambda: torch.randn(3, generator=torch.Generator(), device=device),
        ):
            with pytest.raises(RuntimeError, match="device"):
                wrong()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()


@pytest.mark.parametrize("pose", [False, True], ids=["voice", "voice and pose"])
def test_a_video_is_made_on_another_device(
    monkeypatch: pytest.MonkeyPatch, toy_dir: Path, request_: GenerateRequest, tmp_path: Path, pose: bool
) -> None:
    request = dataclasses.replace(request_, num_steps=2)
    if pose:
        np.savez(tmp_path / "pose.npz", keypoints=np.random.default_rng(0).random((25, 133, 3)), fps=25.0)
        request = dataclasses.replace(request, pose=tmp_path / "pose.npz", speaker_region=(0.0, 0.0, 0.5, 1.0))
    with other_device(monkeypatch) as device:
        pipeline = OmniHumanPipeline.from_pretrained(toy_dir, device=str(device), dtype=torch.bfloat16)
        assert pipeline(request).num_frames == 25
