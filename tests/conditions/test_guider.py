"""The pose guider: each latent position sees its own pixels, its frames and its neighbours, and nothing else."""

import pytest
import torch

from omnihuman_conditions.pose.guider import PoseGuider, PoseGuiderConfig
from omnihuman_core.contracts.latents import LatentSpec
from omnihuman_core.testing.encoder import ConditionEncoderConformance
from omnihuman_core.testing.numerics import randomize


def config(**fields: int) -> PoseGuiderConfig:
    base = {
        "in_channels": 3,
        "hidden_dim": 8,
        "out_channels": 5,
        "margin": 1,
        "temporal_stride": 4,
        "spatial_stride": 2,
    }
    return PoseGuiderConfig(**(base | fields))


@pytest.mark.parametrize(("stride", "size", "margin"), [(4, 8, 1), (4, 2, 0), (1, 2, 2), (2, 4, 1)])
def test_shapes_follow_the_latent_spec(stride: int, size: int, margin: int) -> None:
    guider = PoseGuider(config(temporal_stride=stride, spatial_stride=size, margin=margin))
    spec = LatentSpec(channels=5, temporal_stride=stride, spatial_stride=size)
    frames, height, width = spec.pixel_frames(3), 2 * size, 3 * size
    features = guider.encode(torch.rand(2, 3, frames, height, width)).features
    assert features.shape == (2, *spec.latent_shape(frames, height, width))


@pytest.mark.parametrize("margin", [0, 1, 2])
def test_time_reach(margin: int) -> None:
    torch.manual_seed(0)
    guider = PoseGuider(config(margin=margin))
    spec = LatentSpec(channels=5, temporal_stride=4, spatial_stride=2)
    maps = torch.rand(1, 3, 13, 4, 4, requires_grad=True)
    features = guider.encode(maps).features
    for latent in range(4):
        (gradient,) = torch.autograd.grad(features[:, :, latent].square().sum(), maps, retain_graph=True)
        seen = gradient.abs().sum((0, 1, 3, 4)).nonzero()[:, 0].tolist()
        own = spec.frame_range(latent)
        assert seen == list(range(max(own[0] - margin, 0), min(own[-1] + margin, 12) + 1))


def test_pixel_alignment() -> None:
    """A position answers to the pixels behind it and, through the 3x3 convolution, to those next to it."""
    torch.manual_seed(0)
    guider = PoseGuider(config())
    maps = torch.rand(1, 3, 5, 12, 10, requires_grad=True)
    features = guider.encode(maps).features
    (gradient,) = torch.autograd.grad(features[0, :, 1, 3, 2].square().sum(), maps)
    seen = gradient.abs().sum((0, 1, 2)).nonzero()
    assert (seen[:, 0].min(), seen[:, 0].max()) == (4, 9)
    assert (seen[:, 1].min(), seen[:, 1].max()) == (2, 7)


def test_order_of_frames_matters() -> None:
    torch.manual_seed(0)
    guider = PoseGuider(config())
    maps = torch.rand(1, 3, 5, 4, 4)
    turned = torch.cat([maps[:, :, :1], maps[:, :, 1:].flip(2)], 2)
    assert not torch.allclose(guider.encode(maps).features[:, :, 1], guider.encode(turned).features[:, :, 1], atol=1e-3)


def test_a_piece_of_a_track_equals_its_part_of_the_whole() -> None:
    torch.manual_seed(0)
    guider = PoseGuider(config())
    maps = torch.rand(1, 3, 25, 4, 4)
    whole = guider.encode(maps).features
    # The piece starts with the last frame of latent frame 1; its first two results lack what came before.
    piece = guider.encode(maps[:, :, 4:]).features
    torch.testing.assert_close(piece[:, :, 2:], whole[:, :, 3:])


def test_null_trains() -> None:
    guider = PoseGuider(config())
    condition = guider.encode(torch.rand(2, 3, 5, 4, 4))
    guider.null(condition).features.sum().backward()
    assert guider.null_feature.grad is not None
    assert guider.null_feature.grad.tolist() == [2 * 2 * 2 * 2] * 5


def test_tiny_and_refusals() -> None:
    guider = PoseGuider(PoseGuiderConfig.tiny())
    features = guider.encode(torch.zeros(1, 3, 5, 16, 24)).features
    assert features.shape == (1, 16, 2, 2, 3)
    for shape in ((1, 3, 6, 16, 16), (1, 3, 5, 12, 16), (1, 3, 5, 16, 12)):
        with pytest.raises(ValueError, match="pose maps need"):
            guider.encode(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"\(B, 3, T, H, W\)"):
        guider.encode(torch.zeros(1, 1, 5, 16, 16))
    for fields in ({"hidden_dim": 0}, {"margin": -1}):
        with pytest.raises(ValueError, match=f"PoseGuiderConfig.{next(iter(fields))}"):
            config(**fields)


class TestConformance(ConditionEncoderConformance):
    @pytest.fixture
    def encoder(self) -> PoseGuider:
        guider = PoseGuider(config())
        randomize(guider)
        return guider.eval()

    @pytest.fixture
    def features(self) -> torch.Tensor:
        return torch.rand(2, 3, 5, 4, 6, generator=torch.Generator().manual_seed(0))
