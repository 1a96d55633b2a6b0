from __future__ import annotations

import pytest
import scipy.fft
import torch
import torch.nn.functional as F
from torch import Generator

from omnihuman_vae.distribution import DiagonalGaussian
from omnihuman_vae.layers import CausalConv3d, PositionRMSNorm, fold_positions, unfold_positions
from omnihuman_vae.tubelet import cosine_basis


def test_rms_norm_is_torchs_over_channels_alone():
    norm = PositionRMSNorm(5, eps=1e-3)
    torch.nn.init.uniform_(norm.weight)
    x = torch.randn(2, 5, 3, 4, 2)
    expected = torch.empty_like(x)
    for index in [(b, t, h, w) for b in range(2) for t in range(3) for h in range(4) for w in range(2)]:
        b, t, h, w = index
        expected[b, :, t, h, w] = F.rms_norm(x[b, :, t, h, w], (5,), norm.weight, 1e-3)
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 1, 1), (1, 3, 3), (2, 1, 1)])
@pytest.mark.parametrize("stride", [1, 2])
def test_causal_convolution_is_a_convolution_of_the_input_padded_in_front(kernel, stride):
    conv = CausalConv3d(3, 4, kernel=kernel, temporal_stride=stride if kernel[0] == 3 else 1)
    x = torch.randn(2, 3, 7, 6, 5)
    padded = torch.cat([torch.zeros(2, 3, kernel[0] - 1, 6, 5), x], dim=2)
    border = kernel[1] // 2
    expected = F.conv3d(padded, conv.conv.weight, conv.conv.bias, conv.conv.stride, (0, border, border))
    torch.testing.assert_close(conv(x), expected)


def test_first_frame_fills_its_own_tubelet_and_folding_is_undone():
    x = torch.randn(2, 3, 9, 4, 6)
    folded = fold_positions(x, (4, 2, 2), starts=True)
    assert folded.shape == (2, 4 * 2 * 2 * 3, 3, 2, 3)
    first = folded[:, :, 0].unflatten(1, (4, 12))
    assert torch.equal(first, first[:, :1].expand_as(first))
    assert torch.equal(unfold_positions(folded, (4, 2, 2), starts=True), x)
    later = fold_positions(x[:, :, 1:], (4, 2, 2), starts=False)
    assert torch.equal(later, folded[:, :, 1:])
    assert torch.equal(unfold_positions(later, (4, 2, 2), starts=False), x[:, :, 1:])


def test_cosine_basis_is_orthonormal_and_made_of_scipys_cosines():
    vectors, sizes = cosine_basis((4, 8, 8), 3, 16)
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(16), atol=1e-5, rtol=0)
    assert sizes.shape == (16,)
    assert bool((sizes > 0).all())
    for vector in vectors:
        spectrum = scipy.fft.dctn(vector.view(4, 8, 8, 3).double().numpy(), norm="ortho")
        peak = abs(spectrum).argmax()
        # One frequency each, and a low one.
        assert abs(spectrum.flat[peak]) == pytest.approx(1.0, abs=1e-5)
        assert max(divmod(peak // 3, 64)[0], (peak // 24) % 8, (peak // 3) % 8) <= 2
    with pytest.raises(ValueError, match="no 13 independent directions"):
        cosine_basis((1, 2, 2), 3, 13)


def test_cosine_basis_holds_every_flat_tubelet():
    vectors, _ = cosine_basis((4, 8, 8), 3, 16)
    flat = torch.tensor([0.3, -0.9, 0.5]).expand(4, 8, 8, 3).flatten()
    torch.testing.assert_close(vectors.T @ (vectors @ flat), flat)


def test_kl_is_torchs():
    mean, logvar = torch.randn(3, 4), torch.randn(3, 4)
    normal = torch.distributions.Normal(mean, torch.exp(0.5 * logvar))
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(DiagonalGaussian(mean, logvar).kl(), expected)


def test_samples_have_the_moments_and_follow_the_generator():
    posterior = DiagonalGaussian(torch.full((20000,), 0.7), torch.full((20000,), -1.0))
    draws = [posterior.sample(Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    # Five standard errors.
    assert draws[0].mean().item() == pytest.approx(0.7, abs=5 * 0.61 / 20000**0.5)
    assert draws[0].std().item() == pytest.approx(0.6065, abs=5 * 0.61 / 40000**0.5)
