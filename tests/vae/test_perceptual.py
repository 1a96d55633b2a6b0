"""The perceptual distance against the formula, written out on a VGG made of torch's layers."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from omnihuman_vae.perceptual import VGGDistance

from .vgg import vgg16, vgg_weights

# Of torchvision's VGG16: the ReLU after the last convolution of each block, as LPIPS takes them.
TAPS = (3, 8, 15, 22, 29)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def by_formula(first, second, lins):
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    network, total = vgg16(), 0.0
    values = [((picture + 1) / 2 - mean) / std for picture in (first, second)]
    for index, layer in enumerate(network[: TAPS[-1] + 1]):
        values = [layer(value) for value in values]
        if index in TAPS:
            block = TAPS.index(index)
            unit = [value / value.norm(dim=1, keepdim=True).clamp_min(1e-12) for value in values]
            total = total + ((unit[0] - unit[1]) ** 2 * lins[block].view(-1, 1, 1)).sum(1).mean()
    return total


def videos(frames=3, height=32, width=24):
    generator = torch.Generator().manual_seed(4)
    return [torch.rand(2, 3, frames, height, width, generator=generator) * 2 - 1 for _ in range(2)]


@pytest.mark.parametrize("learnt", [False, True])
def test_distance_is_the_formula(learnt):
    first, second = videos()
    weights = vgg_weights()
    lins = [torch.ones(width) for width in (8, 16, 32, 64, 64)]
    if learnt:
        lins = [torch.rand(len(lin)) for lin in lins]
        weights |= {f"lin{block}.model.1.weight": lin.view(1, -1, 1, 1) for block, lin in enumerate(lins)}
    pictures = [video.transpose(1, 2).flatten(0, 1) for video in (first, second)]
    expected = by_formula(*pictures, lins)
    assert expected > 0
    torch.testing.assert_close(VGGDistance(weights)(first, second), expected, rtol=2e-3, atol=1e-6)


def test_distance_to_itself_is_zero_and_grows_with_the_error():
    first, second = videos()
    distance = VGGDistance(vgg_weights())
    assert distance(first, first) == 0
    near, far = (distance(first, first + scale * (second - first)) for scale in (0.1, 0.5))
    assert 0 < near < far


def test_gradients_reach_the_video_and_no_weight():
    first, second = videos()
    distance = VGGDistance(vgg_weights())
    first.requires_grad_()
    distance(first, second).backward()
    assert first.grad.isfinite().all()
    assert first.grad.abs().sum() > 0
    assert not list(distance.parameters())


def test_a_grey_picture_has_finite_gradients():
    """All features may be 0 there, where a root alone has no slope."""
    weights = {key: value.abs().neg() if "weight" in key else value * 0 for key, value in vgg_weights().items()}
    white = torch.ones(1, 3, 1, 16, 16, requires_grad=True)
    VGGDistance(weights)(white, torch.zeros(1, 3, 1, 16, 16)).backward()
    assert white.grad.isfinite().all()


def test_weights_come_from_a_folder_and_what_is_missing_is_said(tmp_path):
    first, second = videos()
    with pytest.raises(ValueError, match=r"no \*.safetensors here"):
        VGGDistance.from_folder(tmp_path)
    weights = vgg_weights()
    save_file(weights, tmp_path / "vgg16.safetensors")
    expected = VGGDistance(weights)(first, second)
    assert torch.equal(VGGDistance.from_folder(tmp_path)(first, second), expected)
    del weights["features.28.weight"], weights["features.28.bias"]
    save_file(weights, tmp_path / "vgg16.safetensors")
    with pytest.raises(ValueError, match="a VGG16 has 13 convolutions .*, got 12"):
        VGGDistance.from_folder(tmp_path)
    with pytest.raises(ValueError, match="at least 16"):
        VGGDistance(vgg_weights())(*videos(height=8))
