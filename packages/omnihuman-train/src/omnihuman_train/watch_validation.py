"""Validation videos while a model trains: the same samples and the same noise each time, so that videos compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omnihuman_core.contracts import LossOutput
from omnihuman_core.flow.samplers import SAMPLERS
from omnihuman_core.flow.sigmas import schedule
from omnihuman_core.model_dir import load_component
from omnihuman_train.data.media import encode_video
from omnihuman_train.distributed.exchange import layout, same_parts
from omnihuman_train.distributed.fsdp import loss_function
from omnihuman_train.distributed.mesh import World
from omnihuman_train.objective import condition
from omnihuman_train.stages import Ratios
from omnihuman_train.watching import StepTiming

Batch = Mapping[str, Any]

# Latent frames that are decoded at once: what a decoder keeps in between grows with them.
_PIECE = 2


class ValidationVideos:
    """Samples a few segments every some steps and writes them as mp4. A :class:`~omnihuman_train.watching.Watcher`.

    It shows the weights of the moment, not their average, under all conditions that the samples have and that were
    trained, without guidance.
    Of a sharded model every rank has to be given one, since all take part in a forward.

    Args:
        folder: Where ``step_NNNNNNNN_seed_S.mp4`` go.
        model: The model that is trained.
        batch: Gives the samples, always the same; called once. Each seed takes the next one.
        decode: Latents ``(1, C, t, h, w)`` to video ``(1, 3, T, H, W)`` in [-1, 1]; see :func:`decoder`.
        every: Steps between videos.
        seeds: Seeds of the noise, one video each.
        steps: Steps of the sampler.
        sigma_shift: Shift of its noise levels.
        fps: Frames per second.
        world: Processes of the run.
        precision: ``bf16`` samples under autocast.
        ratios: Keep ratios of the stage; a condition with 0 is dropped, since its path was never trained.
    """

    def __init__(
        self,
        folder: Path,
        *,
        model: nn.Module,
        batch: Callable[[], Batch],
        decode: Callable[[Tensor], Tensor],
        every: int,
        seeds: tuple[int, ...],
        steps: int,
        sigma_shift: float,
        fps: float,
        world: World,
        precision: str,
        ratios: Ratios,
    ) -> None:
        self._folder, self._model, self._batch, self._decode = folder, model, batch, decode
        self._every, self._seeds, self._steps, self._shift = every, seeds, steps, sigma_shift
        self._fps, self._world, self._bf16 = fps, world, precision == "bf16"
        self._ratios = ratios
        self._sample: Callable[[Batch], LossOutput] | None = None
        self._rows: Batch = {}

    def step(self, step: int, output: LossOutput, timing: StepTiming) -> None:
        """Write videos where they are due."""
        if (step + 1) % self._every == 0:
            self.write(step + 1)

    def write(self, done: int) -> None:
        """Sample and write the videos of a model that was trained ``done`` steps."""
        if self._sample is None:
            # Now, not before: by the first step the model is where it stays, sharded or not.
            self._sample = loss_function(self._model, self._latents)
            rows = chosen_rows(self._batch(), len(self._seeds), self._ratios, self._world.device)
            self._rows = same_parts(rows, self._world.gather(layout(rows)), self._world.device)
        was_training = self._model.training
        self._model.eval()
        # A loop that draws from torch's generators must not notice.
        with torch.no_grad(), torch.autocast(self._world.device.type, torch.bfloat16, enabled=self._bf16):
            latents = self._sample(self._rows).loss
        self._model.train(was_training)
        if not self._world.main:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        for seed, one in zip(self._seeds, latents, strict=True):
            with torch.no_grad():
                video = self._decode(one[None].float())[0]  # (3, T, H, W)
            pixels = ((video.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
            frames = pixels.permute(1, 2, 3, 0).contiguous().cpu()  # (T, H, W, 3)
            (self._folder / f"step_{done:08d}_seed_{seed}.mp4").write_bytes(encode_video(frames, self._fps))

    def _latents(self, model: Any, batch: Batch) -> LossOutput:
        conditioning = condition(model, batch, slice(batch["start"], batch["stop"]))
        shape = batch["latents"][0, :, batch["start"] : batch["stop"]].shape
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in self._seeds]
        levels = schedule(self._steps, shift_factor=self._shift, device=self._world.device)

        def predict(latents: Tensor, sigma: Tensor) -> Tensor:
            velocity: Tensor = model.backbone(latents, sigma, conditioning)
            return velocity

        # In the place of a loss: what is called through a sharded model returns one of these.
        sampled = SAMPLERS["euler"](predict, torch.stack(noise).to(self._world.device), levels)
        return LossOutput(loss=sampled)

    def close(self) -> None:
        """Nothing is open."""


def decoder(directory: str, device: torch.device, precision: str) -> Callable[[Tensor], Tensor]:
    """What decodes the videos: the VAE of a model directory, loaded at the first one.

    A clip is decoded piece by piece and its pixels leave the device: beside a model in training there is no room for
    what a whole clip takes.

    Args:
        directory: Model directory.
        device: Where the VAE computes.
        precision: Of the run; ``bf16`` is that of the VAE on a GPU.

    Returns:
        Final latents ``(1, C, t, h, w)`` to video ``(1, 3, T, H, W)`` on the CPU.
    """
    dtype = torch.bfloat16 if precision == "bf16" and device.type == "cuda" else torch.float32
    vae: list[Any] = []

    def decode(latents: Tensor) -> Tensor:
        if not vae:
            vae.append(load_component(directory, "vae", device=device, dtype=dtype))
        return torch.cat([piece.cpu() for piece in vae[0].decode_stream(torch.split(latents, _PIECE, 2))], 2)

    return decode


def chosen_rows(batch: Batch, count: int, ratios: Ratios, device: torch.device) -> dict[str, Any]:
    """``count`` samples of a batch, taken in turn, at the beginning of their clips, with every condition they have.

    A condition whose ratio is 0 is dropped, and a pose that the batch drew no maps for stays dropped.
    """
    samples = len(batch["latents"])
    rows = [number % samples for number in range(count)]
    chosen: dict[str, Any] = {}
    for key, value in batch.items():
        if isinstance(value, Tensor) and key != "pose_maps":
            chosen[key] = value[rows].to(device)
    chosen["latents"] = chosen["latents"].float()
    chosen["reference"] = chosen["reference"].float()
    with_pose = batch["keep"]["pose"].nonzero()[:, 0].tolist()
    maps = [batch["pose_maps"][with_pose.index(row)] for row in rows if row in with_pose]
    every = torch.ones(count, dtype=torch.bool)
    fit = {
        "text": every,
        "audio": batch["has_audio"][rows].bool().cpu(),
        "pose": batch["keep"]["pose"][rows].cpu(),
        "reference": every,
    }
    return {
        **chosen,
        "start": 0,
        "stop": batch["stop"] - batch["start"],
        "motion_latents": 0,
        "pose_maps": torch.stack(maps).to(device) if maps else None,
        "keep": {name: mask & (getattr(ratios, name) > 0) for name, mask in fit.items()},
    }
