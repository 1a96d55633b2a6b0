"""Tiles of the native VAEs are pieces of the untiled picture."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from omnihuman_core.testing.numerics import randomize, relative_error
from omnihuman_vae.adapters import HunyuanVideoVAE, HunyuanVideoVAEConfig, WanVAE, WanVAEConfig, causal, hunyuan_video
from omnihuman_vae.adapters.tiles import Step, cuts, spans
from omnihuman_vae.tiling import TiledVideoVAE, TilingConfig
from tests.vae.adapters.conftest import HUNYUAN, WAN, native, noise, reference
from tests.vae.adapters.test_equality import expected_latents

TOLERANCE = 1e-5


@pytest.mark.parametrize("tile_size", [8, 20, 48])
@torch.no_grad()
def test_wan_equals_untiled(tile_size: int) -> None:
    vae = native("wan")
    # Wide enough for tiles whose surroundings end inside the picture on both sides, at latent size too.
    latents = torch.randn(1, 4, 2, 2, 30)
    assert relative_error(vae.decode_tiled(latents, tile_size), vae.decode(latents)) <= TOLERANCE


@torch.no_grad()
def test_wan_equals_public_in_rows_and_columns() -> None:
    latents = torch.randn(2, 4, 3, 6, 5)
    mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in native("wan").config.statistics)
    expected = reference("wan").decode(latents * std + mean).sample
    tiled = TiledVideoVAE(native("wan"), TilingConfig(tile_size=16, overlap=8))
    assert relative_error(tiled.decode(latents).clamp(-1, 1), expected) <= TOLERANCE


@torch.no_grad()
def test_hunyuan_video_equals_untiled_but_for_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, latents = native("hunyuan_video"), torch.randn(1, 4, 3, 2, 30)
    whole = vae.decode(latents)
    assert relative_error(vae.decode_tiled(latents[:, :, :1], 24), vae.decode(latents[:, :, :1])) <= TOLERANCE
    one, many = vae.decode_tiled(latents, 1000), vae.decode_tiled(latents, 24)
    # All tiles share their statistics, so that there is no seam.
    assert relative_error(many, one) <= TOLERANCE
    assert relative_error(many, whole) > 1e-3
    monkeypatch.setattr(hunyuan_video, "STATISTICS_FRAMES", 3)
    assert relative_error(vae.decode_tiled(latents, 24), whole) <= TOLERANCE


@pytest.mark.parametrize(
    ("frames", "height", "width", "tile_size"),
    [(1, 8, 8, 8), (1, 24, 72, 20), (5, 40, 104, 8), (9, 16, 136, 40), (13, 56, 24, 24), (5, 24, 40, 1000)],
)
@pytest.mark.parametrize("name", ["wan", "hunyuan_video"])
@pytest.mark.parametrize("slab", [causal.SLAB_VALUES, 1], ids=["whole", "slabs"])
@torch.no_grad()
def test_encoding_equals_public(
    slab: int, name: str, frames: int, height: int, width: int, tile_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(causal, "SLAB_VALUES", slab)
    # With the statistics of the whole clip, which are those of the first frame where that is all.
    monkeypatch.setattr(hunyuan_video, "STATISTICS_FRAMES", frames)
    video = noise(2, 3, frames, height, width)
    found = native(name).encode_tiled(video, tile_size)
    assert relative_error(found, expected_latents(name, reference(name), video)) <= TOLERANCE


@torch.no_grad()
def test_hunyuan_video_encodes_with_statistics_of_the_first_frame() -> None:
    vae, video = native("hunyuan_video"), noise(1, 3, 5, 24, 104)
    whole = vae.encode(video)
    one, many = vae.encode_tiled(video, 1000), vae.encode_tiled(video, 24)
    # All tiles share their statistics, so that there is no seam.
    assert relative_error(many, one) <= TOLERANCE
    assert relative_error(many, whole) > 1e-3
    repeated = video[:, :, :1].expand(-1, -1, 5, -1, -1)
    assert relative_error(vae.encode_tiled(repeated, 24), vae.encode(repeated)) <= TOLERANCE


@pytest.mark.parametrize(
    "config",
    [
        replace(WAN, channel_multipliers=(1, 2), temporal_downsample=(True,)),
        replace(WAN, channel_multipliers=(2, 1, 2), temporal_downsample=(True, False)),
        replace(WAN, channel_multipliers=(1,) * 5, temporal_downsample=(True, False, False, True)),
        replace(HUNYUAN, spatial_stride=16, mid_attention=False),
        replace(HUNYUAN, channels=(4, 8, 8), spatial_stride=4),
    ],
    ids=["wan 2 levels", "wan 3 levels", "wan 5 levels", "hunyuan stride 16", "hunyuan 3 levels"],
)
@torch.no_grad()
def test_other_architectures_encode_exactly(
    config: WanVAEConfig | HunyuanVideoVAEConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hunyuan_video, "STATISTICS_FRAMES", 9)
    vae = WanVAE(config) if isinstance(config, WanVAEConfig) else HunyuanVideoVAE(config)
    randomize(vae)
    video = noise(1, 3, 9, 48, 112)
    for tile_size in (16, 60):
        assert relative_error(vae.encode_tiled(video, tile_size), vae.encode(video)) <= TOLERANCE


@torch.no_grad()
def test_tiled_vae_encodes_without_blending_and_draws_noise_of_the_clip() -> None:
    vae, video = native("wan"), noise(1, 3, 5, 32, 48)
    tiled = TiledVideoVAE(vae, TilingConfig(tile_size=16, overlap=8))
    assert relative_error(tiled.encode(video), vae.encode(video)) <= TOLERANCE
    drawn, expected = (each.encode(video, generator=torch.Generator().manual_seed(3)) for each in (tiled, vae))
    assert relative_error(drawn, expected) <= TOLERANCE
    assert relative_error(drawn, vae.encode(video)) > 1e-3


@torch.no_grad()
def test_half_precision_keeps_the_dtype_of_the_video() -> None:
    vae, video = native("wan").to(torch.bfloat16), noise(1, 3, 5, 16, 48)
    latents = vae.encode_tiled(video, 16)
    assert latents.dtype == torch.float32
    assert relative_error(latents, vae.encode(video)) <= 0.05


@torch.no_grad()
def test_first_levels_never_see_more_than_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, convolve = [], causal.convolve

    def watched(x: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        seen.append(tuple(x.shape[2:]))
        return convolve(x, *args, **kwargs)

    monkeypatch.setattr(causal, "convolve", watched)
    native("wan").encode_tiled(noise(1, 3, 17, 32, 400), 80)
    pixels = [(frames, width) for frames, height, width in seen if height > 16]
    # Two levels reach 16 pixels to each side.
    assert max(width for _, width in pixels) <= 80 + 2 * 16
    # Two frames behind two that are carried: so many become one in two levels.
    assert max(frames for frames, _ in pixels) == 4


@torch.no_grad()
def test_no_convolution_unfolds_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU torch takes 27 times the memory where it unfolds; oneDNN is called by name so that it never does."""
    if not causal.ONEDNN:
        pytest.skip("this torch was built without oneDNN")
    monkeypatch.setattr(F, "conv3d", None)
    for name in ("wan", "hunyuan_video"):
        vae = native(name)
        vae.encoder(torch.randn(1, 3, 5, 16, 16))
        vae.decoder(torch.randn(1, 4, 2, 2, 2))


def test_spans_grow_towards_latents_and_end_at_the_border() -> None:
    steps = [Step(lambda x, cache: x, reach=(2, 2)), Step(lambda x, cache: x, reach=(2, 2), up=2)]
    # 20 pixels of 10 positions: 2 around them, halved, and 2 around those.
    assert spans(steps, 10, (8, 12)) == [(1, 9), (3, 7), (8, 12)]
    assert spans(steps, 10, (0, 20)) == [(0, 10), (0, 10), (0, 20)]
    assert cuts(20, 8) == [(0, 6), (6, 13), (13, 20)]
    # 4 positions of 20 pixels: twice as many, of which one before (or behind) counts, and 2 around those.
    for reach, expected in (((1, 0), [(5, 18), (7, 16), (4, 8)]), ((0, 1), [(6, 19), (8, 17), (4, 8)])):
        steps = [Step(lambda x, cache: x, reach=(2, 2)), Step(lambda x, cache: x, reach=reach, down=2)]
        assert spans(steps, 20, (4, 8)) == expected
        assert spans(steps, 20, (0, 10)) == [(0, 20), (0, 20), (0, 10)]


def test_bad_tiles_are_refused() -> None:
    vae = native("hunyuan_video")
    assert isinstance(vae, HunyuanVideoVAE)
    with pytest.raises(ValueError, match="tile_size must be positive, got 0"):
        vae.decode_tiled(torch.randn(1, 4, 1, 2, 2), 0)
    with pytest.raises(ValueError, match=r"latents must be \(B, 4, t, h, w\)"):
        vae.decode_tiled(torch.randn(1, 5, 1, 2, 2), 8)
    with pytest.raises(ValueError, match="tile_size must be positive, got -8"):
        vae.encode_tiled(noise(1, 3, 1, 16, 16), -8)
    with pytest.raises(ValueError, match=r"video must be \(B, 3, T, H, W\)"):
        vae.encode_tiled(noise(1, 4, 1, 16, 16), 8)
    with pytest.raises(ValueError, match="width must be a multiple of 8, got 20"):
        vae.encode_tiled(noise(1, 3, 1, 16, 20), 8)
    with pytest.raises(ValueError, match="frames must be 1 \\+ a multiple of 4, got 4"):
        vae.encode_tiled(noise(1, 3, 4, 16, 16), 8)
