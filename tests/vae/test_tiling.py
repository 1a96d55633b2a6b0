from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from omnihuman_core.contracts.vae import VideoVAE
from omnihuman_core.testing.fakes import FakeVAE, FakeVAEConfig
from omnihuman_vae.tiling import TiledVideoVAE, TilingConfig


@pytest.fixture
def pointwise() -> FakeVAE:
    """A VAE whose latent positions do not see each other: tiles must give exactly the whole."""
    return FakeVAE(FakeVAEConfig(temporal_stride=4, spatial_stride=4, channels=6))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (20, 44), (8, 36), (32, 4)])
@pytest.mark.parametrize("overlap", [0, 4, 8])
def test_tiles_of_a_pointwise_vae_are_the_whole(pointwise, video, height, width, overlap):
    tiled = TiledVideoVAE(pointwise, TilingConfig(tile_size=16, overlap=overlap))
    assert isinstance(tiled, VideoVAE)
    clip = video(9, height, width)
    latents = pointwise.encode(clip)
    torch.testing.assert_close(tiled.encode(clip), latents)
    torch.testing.assert_close(tiled.decode(latents), pointwise.decode(latents))
    streamed = list(tiled.decode_stream(latents.split([1, 2], dim=2)))
    assert [piece.shape[2] for piece in streamed] == [1, 8]
    torch.testing.assert_close(torch.cat(streamed, dim=2), pointwise.decode(latents))


def test_tiles_of_a_smooth_picture_are_close_to_the_whole(narrow):
    vae = narrow("tiny")
    corners = torch.tensor([[-0.5, 0.2], [0.1, 0.6]]).expand(1, 3, 2, 2, 2)
    clip = F.interpolate(corners, size=(5, 64, 256), mode="trilinear")
    errors = []
    with torch.no_grad():
        latents = vae.encode(clip)
        whole = vae.decode(latents)
        for tile_size, overlap in ((128, 32), (192, 96)):
            tiled = TiledVideoVAE(vae, TilingConfig(tile_size=tile_size, overlap=overlap))
            assert (tiled.encode(clip) - latents).abs().max() < 0.02 * latents.std()
            parts = tiled.decode(latents)
            # Far from every seam nothing changes at all.
            torch.testing.assert_close(parts[..., :48], whole[..., :48])
            errors.append(((parts - whole).abs().mean() / whole.std()).item())
    # The weights are random and so the borders of tiles loud; a wide overlap silences them.
    assert errors[1] < 0.01
    assert errors[1] < errors[0] / 3


def test_blending_leaves_no_jump(narrow):
    class Shifts:
        """Decodes each tile to its own constant: the worst disagreement between neighbours."""

        latent_spec = narrow("tiny").latent_spec
        streaming_tolerance = None
        calls = 0

        def decode(self, latents):
            self.calls += 1
            return torch.full((1, 3, 1, latents.shape[3] * 8, latents.shape[4] * 8), float(self.calls))

    tiled = TiledVideoVAE(Shifts(), TilingConfig(tile_size=64, overlap=32))
    row = tiled.decode(torch.zeros(1, 6, 1, 8, 20))[0, 0, 0, 0]
    assert row[0] == 1
    assert row.diff().abs().max() <= 1 / 32 + 1e-5
    assert row[-1] == tiled.vae.calls


def test_what_fits_one_tile_is_untouched(narrow, video):
    vae = narrow("tiny")
    tiled = TiledVideoVAE(vae, TilingConfig(tile_size=64, overlap=16))
    clip = video(5, 64, 64)
    with torch.no_grad():
        assert torch.equal(tiled.decode(tiled.encode(clip)), vae.decode(vae.encode(clip)))


def test_bad_tiling_is_refused(narrow, video):
    with pytest.raises(ValueError, match="tile_size"):
        TilingConfig(tile_size=0)
    with pytest.raises(ValueError, match="overlap"):
        TilingConfig(tile_size=64, overlap=40)
    with pytest.raises(ValueError, match="tile_size must be a multiple of 8"):
        TiledVideoVAE(narrow("tiny"), TilingConfig(tile_size=60, overlap=8))
    with pytest.raises(ValueError, match="overlap must be a multiple of 8"):
        TiledVideoVAE(narrow("tiny"), TilingConfig(tile_size=64, overlap=4))
    with pytest.raises(ValueError, match="width must be a multiple of 8"):
        TiledVideoVAE(narrow("tiny")).encode(video(1, 16, 20))
