"""Validation videos: the samples and noise are fixed, training does not notice, and a known flow is sampled exactly."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from omnihuman_core.contracts import LossOutput
from omnihuman_core.model_dir import load_component
from omnihuman_train.distributed.mesh import World
from omnihuman_train.model import OmniModel
from omnihuman_train.stages import Ratios
from omnihuman_train.watch_validation import ValidationVideos, chosen_rows
from omnihuman_train.watch_validation import decoder as open_decoder
from omnihuman_train.watching import StepTiming

from .models import SEGMENT, STAGES, Recorder, flow_batches, toy_model
from .stage_toys import TINY

TIMING = StepTiming(data_seconds=0.0, step_seconds=1.0, samples=8)
LOSS = LossOutput(loss=torch.tensor(1.0))


def decoder(seen: list[Tensor]) -> Any:
    def decode(latents: Tensor) -> Tensor:
        seen.append(latents)
        level = latents.mean(dim=(0, 1, 3, 4)).clamp(-1, 1)  # (t,)
        return level.view(1, 1, -1, 1, 1).expand(1, 3, -1, 16, 16)

    return decode


def videos(folder: Path, latents: Path, model: OmniModel, seen: list[Tensor], **changes: Any) -> ValidationVideos:
    batches = flow_batches(latents)
    settings: dict[str, Any] = {
        "model": model,
        "batch": lambda: batches(7),
        "decode": decoder(seen),
        "every": 5,
        "seeds": (3, 4, 3),
        "steps": 4,
        "sigma_shift": 3.0,
        "fps": 25.0,
        "world": World(device=torch.device("cpu")),
        "precision": "fp32",
        "ratios": STAGES[-1].ratios,
    }
    return ValidationVideos(folder, **{**settings, **changes})


def test_a_flow_towards_one_point_is_followed_to_it(tmp_path: Path, latents: Path) -> None:
    # The exact velocity of a data set of one sample: every Euler step lies on the line to it.
    backbone = Recorder(lambda x, sigma: (x - 0.25) / sigma.view(-1, 1, 1, 1, 1))
    seen: list[Tensor] = []
    watcher = videos(tmp_path, latents, toy_model(backbone), seen)
    for step in range(12):
        watcher.step(step, LOSS, TIMING)
    watcher.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"step_{done:08d}_seed_{seed}.mp4" for done in (5, 10) for seed in (3, 4)]
    assert all(torch.allclose(x, torch.full_like(x, 0.25), atol=1e-5) for x in seen)
    assert seen[0].shape[2] == SEGMENT.latent_frames
    assert backbone.conditioning.motion is None


def test_an_mp4_has_the_frames_that_were_decoded(tmp_path: Path, latents: Path) -> None:
    av = pytest.importorskip("av")
    backbone = Recorder(lambda x, sigma: (x - 0.5) / sigma.view(-1, 1, 1, 1, 1))
    videos(tmp_path, latents, toy_model(backbone), [], seeds=(0,)).write(5)
    data = (tmp_path / "step_00000005_seed_0.mp4").read_bytes()
    with av.open(io.BytesIO(data)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == SEGMENT.latent_frames
    # (0.5 + 1) * 127.5, as H.264 keeps it.
    assert abs(float(frames[0].mean()) - 191) < 3


def test_the_same_noise_every_time_and_training_does_not_notice(tmp_path: Path, latents: Path) -> None:
    model, seen = toy_model().train(), []
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    watcher = videos(tmp_path, latents, model, seen)
    watcher.write(5)
    watcher.write(10)
    assert all(torch.equal(a, b) for a, b in zip(seen[:3], seen[3:], strict=True))
    # Another sample under the same seed.
    assert not torch.equal(seen[0], seen[2])
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_samples_have_every_condition_that_they_are_fit_for(latents: Path) -> None:
    batches = flow_batches(latents)
    batch = next(batch for batch in map(batches, range(20, 60)) if batch["pose_maps"] is not None)
    rows = chosen_rows(batch, 10, STAGES[-1].ratios, torch.device("cpu"))
    order = [i % 8 for i in range(10)]
    assert torch.equal(rows["keep"]["audio"], batch["has_audio"][order])
    assert bool(rows["keep"]["text"].all())
    assert bool(rows["keep"]["reference"].all())
    kept = batch["keep"]["pose"].nonzero()[:, 0].tolist()
    assert rows["keep"]["pose"].tolist() == [i in kept for i in order]
    wanted = [batch["pose_maps"][kept.index(i)] for i in order if i in kept]
    assert torch.equal(rows["pose_maps"], torch.stack(wanted))
    assert (rows["start"], rows["stop"], rows["motion_latents"]) == (0, SEGMENT.latent_frames, 0)


def test_paths_that_were_not_trained_yet_are_not_shown(tmp_path: Path, latents: Path) -> None:
    batch = next(batch for batch in map(flow_batches(latents), range(20, 60)) if batch["pose_maps"] is not None)
    ratios = Ratios(text=0.9, audio=0.0, pose=0.0, reference=0.0)
    rows = chosen_rows(batch, 8, ratios, torch.device("cpu"))
    assert {name: bool(mask.any()) for name, mask in rows["keep"].items()} == {
        "text": True,
        "audio": False,
        "pose": False,
        "reference": False,
    }
    # The model is given the nulls of the encoders: other sound changes nothing.
    seen: list[Tensor] = []
    model = toy_model()
    for factor in (1.0, 3.0):
        louder = {**batch, "audio": batch["audio"] * factor}
        videos(tmp_path, latents, model, seen, batch=lambda given=louder: given, ratios=ratios).write(5)
    assert all(torch.equal(a, b) for a, b in zip(seen[:3], seen[3:], strict=True))


def test_a_clip_is_decoded_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = load_component(TINY, "vae")
    latents = torch.randn(1, 16, 7, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = vae.decode(latents)
    seen: list[int] = []
    inner = type(vae.decoder).forward

    def forward(self: Any, x: Tensor, *arguments: Any, **named: Any) -> Tensor:
        seen.append(x.shape[2])
        return inner(self, x, *arguments, **named)

    monkeypatch.setattr(type(vae.decoder), "forward", forward)
    with torch.no_grad():
        video = open_decoder(str(TINY), torch.device("cpu"), "fp32")(latents)
    assert seen == [2, 2, 2, 1]
    torch.testing.assert_close(video, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("device", "precision", "dtype"),
    [("cuda", "bf16", torch.bfloat16), ("cuda", "fp32", torch.float32), ("cpu", "bf16", torch.float32)],
)
def test_the_decoder_has_the_precision_of_the_run(
    monkeypatch: pytest.MonkeyPatch, device: str, precision: str, dtype: torch.dtype
) -> None:
    loaded: dict[str, Any] = {}

    def load(directory: str, name: str, **options: Any) -> Any:
        loaded.update(options)
        return load_component(directory, name)

    monkeypatch.setattr("omnihuman_train.watch_validation.load_component", load)
    open_decoder(str(TINY), torch.device(device), precision)(torch.zeros(1, 16, 1, 2, 2))
    assert loaded == {"device": torch.device(device), "dtype": dtype}
