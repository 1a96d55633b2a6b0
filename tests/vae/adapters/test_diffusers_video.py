"""The adapter of other public VAEs: sizes and normalisation as in the pipelines of the models."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from omnihuman_core.contracts.latents import LatentSpec
from omnihuman_core.testing.numerics import relative_error
from omnihuman_vae.adapters import DiffusersVAEConfig, DiffusersVideoVAE
from omnihuman_vae.adapters.diffusers_video import CLASSES
from tests.vae.adapters.conftest import OTHERS, native, noise, other

SIZES = {
    "hunyuan_video_1_5": LatentSpec(channels=4, temporal_stride=4, spatial_stride=16),
    "wan_2_2": LatentSpec(channels=4, temporal_stride=4, spatial_stride=16),
    "ltx": LatentSpec(channels=8, temporal_stride=8, spatial_stride=32),
    "cogvideox": LatentSpec(channels=4, temporal_stride=4, spatial_stride=8),
    "mochi": LatentSpec(channels=4, temporal_stride=6, spatial_stride=8),
}


@pytest.mark.parametrize("model", OTHERS)
@torch.no_grad()
def test_normalisation(model: str) -> None:
    vae = other(model)
    assert vae.latent_spec == SIZES[model]
    public, config = vae.vae, vae.vae.config
    if model == "ltx":
        public.latents_mean.copy_(torch.linspace(-1, 1, 8))
        public.latents_std.copy_(torch.linspace(0.5, 2, 8))
    video = noise(1, 3, 1, *SIZES[model].pixel_size(2, 2))
    mean = public.encode(video).latent_dist.mode()
    if model in ("hunyuan_video_1_5", "cogvideox"):
        expected = mean * config.scaling_factor
    else:
        source = public if model == "ltx" else config
        shift, std = (
            torch.as_tensor(values).view(1, -1, 1, 1, 1) for values in (source.latents_mean, source.latents_std)
        )
        expected = (mean - shift) / std
    latents = vae.encode(video)
    assert relative_error(latents, expected) <= 1e-6
    assert relative_error(vae.decode(latents), public.decode(mean).sample) <= 1e-5


@pytest.mark.parametrize("model", [*OTHERS, "wan", "hunyuan_video"])
def test_threads_do_not_meet_in_a_vae(model: str) -> None:
    """One model serves several requests at once."""
    vae = native(model) if model in ("wan", "hunyuan_video") else other(model)
    spec = vae.latent_spec
    clips = [noise(1, 3, spec.pixel_frames(frames), *spec.pixel_size(1, 2), seed=frames) for frames in (1, 2, 3)]

    @torch.no_grad()
    def there_and_back(number: int) -> torch.Tensor:
        latents = vae.encode(clips[number % len(clips)])
        return torch.cat([latents.flatten(), vae.decode(latents).flatten()])

    alone = [there_and_back(number) for number in range(len(clips))]
    with ThreadPoolExecutor(3) as threads:
        together = list(threads.map(there_and_back, range(12)))
    for number, made in enumerate(together):
        assert torch.equal(made, alone[number % len(clips)]), number


@torch.no_grad()
def test_wan_streams_side_by_side() -> None:
    vae = other("wan_2_2")
    clips = [torch.randn(1, 4, 3, 1, 1) for _ in range(2)]
    streams = [vae.decode_stream(clip.split([2, 1], dim=2)) for clip in clips]
    pieces = list(zip(*streams, strict=True))
    for index, clip in enumerate(clips):
        assert relative_error(torch.cat([piece[index] for piece in pieces], dim=2), vae.decode(clip)) <= 1e-5


@torch.no_grad()
def test_decoder_with_a_noise_level() -> None:
    vae = other("ltx", timestep_conditioning=True)
    assert vae.decode(torch.randn(2, 8, 2, 1, 1)).shape == (2, 3, 9, 32, 32)


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
@torch.no_grad()
def test_cogvideox_decodes_any_length(frames: int) -> None:
    vae = other("cogvideox")
    latents = torch.randn(1, 4, frames, 2, 2)
    assert vae.decode(latents).shape[2] == vae.latent_spec.pixel_frames(frames)


def test_bad_configurations() -> None:
    config = DiffusersVAEConfig(class_name="AutoencoderKLMochi", arguments="{}")
    with pytest.raises(ValueError, match="class_name must be one of AutoencoderKLHunyuanVideo15"):
        replace(config, class_name="AutoencoderKL")
    with pytest.raises(ValueError, match="arguments is not JSON"):
        replace(config, arguments="{")
    with pytest.raises(ValueError, match="must be a JSON object"):
        replace(config, arguments="[]")
    with pytest.raises(ValueError, match="does not know 'novelty'"):
        DiffusersVideoVAE(replace(config, arguments=json.dumps({"novelty": 1})))


def test_every_class_is_tried() -> None:
    assert {class_name for class_name, _ in OTHERS.values()} == set(CLASSES)
