"""Tiles of the native VAEs are pieces of the untiled picture."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from omnihuman_core.testing.numerics import relative_error
from omnihuman_vae.adapters import HunyuanVideoVAE, causal, hunyuan_video
from omnihuman_vae.adapters.tiles import Step, cuts, spans
from omnihuman_vae.tiling import TiledVideoVAE, TilingConfig
from tests.vae.adapters.conftest import native, reference

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
    steps = [Step(lambda x, cache: x, reach=2), Step(lambda x, cache: x, reach=2, doubles=True)]
    # 20 pixels of 10 positions: 2 around them, halved, and 2 around those.
    assert spans(steps, 10, (8, 12)) == [(1, 9), (3, 7), (8, 12)]
    assert spans(steps, 10, (0, 20)) == [(0, 10), (0, 10), (0, 20)]
    assert cuts(20, 8) == [(0, 6), (6, 13), (13, 20)]


def test_bad_tiles_are_refused() -> None:
    vae = native("hunyuan_video")
    assert isinstance(vae, HunyuanVideoVAE)
    with pytest.raises(ValueError, match="tile_size must be positive, got 0"):
        vae.decode_tiled(torch.randn(1, 4, 1, 2, 2), 0)
    with pytest.raises(ValueError, match=r"latents must be \(B, 4, t, h, w\)"):
        vae.decode_tiled(torch.randn(1, 5, 1, 2, 2), 8)
