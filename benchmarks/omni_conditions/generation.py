"""Held-out characters, and what a model makes of their picture, voice and caption: pose is never given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from omni_conditions.training import SIZE
from omni_conditions.variants import Protocol
from omnihuman_core.flow.guidance import Guidance, guided
from omnihuman_core.flow.samplers import sample_euler
from omnihuman_core.flow.sigmas import schedule
from omnihuman_train.data.characters import FRAME_RATE, CharacterClip, make_clip, split_seed
from omnihuman_train.model import OmniModel, build
from omnihuman_train.objective import condition

FRAMES = 49
BATCH = 10
# Held-out clips of the other benchmark have indices from 0 on.
FIRST_INDEX = 9000


def heldout_clips(count: int) -> list[CharacterClip]:
    """Speaking characters and voices that no training clip has: faces and half bodies in turn."""
    return [
        make_clip(
            split_seed("heldout", FIRST_INDEX + index),
            num_frames=FRAMES,
            height=SIZE,
            width=SIZE,
            framing=("face", "half")[index % 2],
            speech="speech",
            persons=1,
            fail_rate=0.0,
        )
        for index in range(count)
    ]


def generate(
    model: OmniModel, vae: Any, clips: Sequence[CharacterClip], protocol: Protocol, *, seed: int = 0
) -> Tensor:
    """Frames ``(N, 3, T, H, W)`` in [-1, 1]; the noise of clip ``i`` is the same for every model."""
    made = [_generate(model, vae, clips[i : i + BATCH], protocol, seed + i) for i in range(0, len(clips), BATCH)]
    return torch.cat(made)


@torch.inference_mode()
def _generate(model: OmniModel, vae: Any, clips: Sequence[CharacterClip], protocol: Protocol, seed: int) -> Tensor:
    count, spec = len(clips), vae.latent_spec
    audio, text = build("feature_extractor", "log_mel", "tiny"), build("feature_extractor", "text_bytes", "tiny")
    reference = vae.encode(torch.stack([clip.reference for clip in clips])[:, :, None])  # (B, C, 1, h, w)
    heard = [audio.align(audio.extract(c.waveform[None]), fps=FRAME_RATE, num_frames=FRAMES)[0] for c in clips]
    words = text.extract([clip.caption for clip in clips])
    shape = (count, spec.channels, spec.latent_frames(FRAMES), *spec.latent_size(SIZE, SIZE))
    batch = {
        "latents": torch.zeros(shape),
        "reference": reference,
        "text_values": words.values,
        "text_mask": words.mask,
        "audio": torch.stack(heard),
        "pose_maps": None,
    }

    def conditions(kept: bool) -> Any:
        given = {"text": kept, "audio": kept, "pose": False, "reference": True}
        keep = {name: torch.full((count,), value) for name, value in given.items()}
        return condition(model, {**batch, "keep": keep}, slice(0, shape[2]))

    guidance = Guidance(scale=protocol.guidance_scale)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    with torch.autocast("cpu", torch.bfloat16):
        positive, negative = conditions(True), conditions(False)
        latents = sample_euler(
            lambda x, sigma: guided(model.backbone, x, sigma, positive, negative, guidance),
            noise,
            schedule(protocol.num_steps),
        )
    return torch.cat([vae.decode(latent[None]) for latent in latents]).float().clamp(-1, 1)


@torch.inference_mode()
def through_vae(vae: Any, clips: Sequence[CharacterClip]) -> Tensor:
    """The rendered truth, encoded and decoded."""
    return torch.cat([vae.decode(vae.encode(clip.video[None])) for clip in clips]).clamp(-1, 1)
