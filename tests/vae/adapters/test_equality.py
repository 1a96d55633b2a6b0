"""Native classes against the public implementation, and what each promises about streams."""

from __future__ import annotations

from dataclasses import replace

import diffusers
import pytest
import torch
import torch.nn.functional as F

from omnihuman_core.testing.numerics import randomize, relative_error
from omnihuman_vae.adapters import HunyuanVideoVAE, WanVAE, causal, hunyuan_layers
from omnihuman_vae.adapters.hunyuan_layers import ClipNorm, FrameCausalAttention
from omnihuman_vae.layers import Cache
from tests.vae.adapters.conftest import HUNYUAN, native, noise, reference

NATIVE = ("wan", "hunyuan_video")
TOLERANCE = 1e-5


def expected_latents(name: str, vae: object, video: torch.Tensor) -> torch.Tensor:
    """Posterior mean of the public implementation, normalised as its pipeline does."""
    mean = vae.encode(video).latent_dist.mode()
    if name == "hunyuan_video":
        return mean * vae.config.scaling_factor
    shift, scale = (
        torch.tensor(values).view(1, -1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return (mean - shift) / scale


def expected_video(name: str, vae: object, latents: torch.Tensor) -> torch.Tensor:
    if name == "hunyuan_video":
        return vae.decode(latents / vae.config.scaling_factor).sample
    shift, scale = (
        torch.tensor(values).view(1, -1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return vae.decode((latents * scale + shift).to(latents.dtype)).sample


def assert_equal_videos(name: str, ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    if name == "wan":
        # The public decoder clamps.
        assert float((theirs.abs() < 1).float().mean()) > 0.5
        ours = ours.clamp(-1, 1)
    assert relative_error(ours, theirs) <= tolerance


@pytest.mark.parametrize("slab", [causal.SLAB_VALUES, 1], ids=["whole", "slabs"])
@pytest.mark.parametrize("name", NATIVE)
@torch.no_grad()
def test_same_as_public(name: str, slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal, "SLAB_VALUES", slab)
    ours, theirs = native(name), reference(name)
    for frames in (1, 5, 13):
        video = noise(2, 3, frames, 16, 24)
        assert relative_error(ours.encode(video), expected_latents(name, theirs, video)) <= TOLERANCE
        latents = torch.randn(2, 4, ours.latent_spec.latent_frames(frames), 2, 3)
        assert_equal_videos(name, ours.decode(latents), expected_video(name, theirs, latents))


@pytest.mark.parametrize("changes", [{"mid_block_add_attention": False}, {"spatial_compression_ratio": 16}])
@torch.no_grad()
def test_variants_of_hunyuan_video(changes: dict[str, int]) -> None:
    names = {"mid_block_add_attention": "mid_attention", "spatial_compression_ratio": "spatial_stride"}
    ours = HunyuanVideoVAE(replace(HUNYUAN, **{names[key]: value for key, value in changes.items()}))
    theirs = reference("hunyuan_video", **changes)
    ours.load_state_dict(theirs.state_dict())
    video = noise(1, 3, 9, 32, 32)
    latents = ours.encode(video)
    assert relative_error(latents, expected_latents("hunyuan_video", theirs, video)) <= TOLERANCE
    assert relative_error(ours.decode(latents), expected_video("hunyuan_video", theirs, latents)) <= TOLERANCE


@pytest.mark.parametrize("name", NATIVE)
def test_gradients_same_as_public(name: str) -> None:
    ours, theirs = native(name), reference(name)
    video = noise(1, 3, 5, 16, 16)
    results = []
    for vae, encode in ((ours, ours.encode), (theirs, lambda video: expected_latents(name, theirs, video))):
        encode(video).square().sum().backward()
        results.append({key: value.grad for key, value in vae.named_parameters() if key.startswith("encoder")})
    # Some are zero but for rounding: a softmax does not see the bias of its keys.
    largest = max(float(gradient.norm()) for gradient in results[1].values())
    for key, gradient in results[1].items():
        assert float((results[0][key] - gradient).norm()) <= 1e-4 * max(float(gradient.norm()), 1e-3 * largest), key


@pytest.mark.parametrize("name", NATIVE)
@torch.no_grad()
def test_half_precision_as_good_as_public(name: str) -> None:
    latents = torch.randn(1, 4, 3, 2, 3)
    truth = expected_video(name, reference(name), latents)
    theirs = expected_video(name, reference(name).to(torch.bfloat16), latents.to(torch.bfloat16))
    ours = native(name).to(torch.bfloat16).decode(latents.to(torch.bfloat16))
    assert ours.dtype == torch.bfloat16
    ours = ours.clamp(-1, 1) if name == "wan" else ours
    assert relative_error(ours, truth) <= 2 * relative_error(theirs, truth)


@pytest.mark.parametrize(
    ("made_by", "public"),
    [(WanVAE, diffusers.AutoencoderKLWan), (HunyuanVideoVAE, diffusers.AutoencoderKLHunyuanVideo)],
)
def test_full_size_has_every_key(made_by: type, public: type) -> None:
    (preset,) = made_by.presets.values()
    with torch.device("meta"):
        # The defaults of the public classes are the published models.
        theirs, ours = public(), made_by(preset())
    shapes = [{key: tuple(value.shape) for key, value in vae.state_dict().items()} for vae in (ours, theirs)]
    assert shapes[0] == shapes[1]
    mean, std = preset().statistics
    if made_by is WanVAE:
        assert (list(mean), list(std)) == (theirs.config.latents_mean, theirs.config.latents_std)
    else:
        assert set(mean) == {0.0}
        assert set(std) == {1 / theirs.config.scaling_factor}
    assert ours.latent_spec.temporal_stride == 4
    assert ours.latent_spec.spatial_stride == theirs.spatial_compression_ratio


@torch.no_grad()
def test_wan_encodes_a_stream_exactly() -> None:
    vae, video = native("wan"), noise(1, 3, 17, 16, 16)
    whole = vae.encode(video)
    for sizes in ([1, 4, 4, 4, 4], [9, 8], [1, 16], [5, 4, 8]):
        streamed = torch.cat(list(vae.encode_stream(video.split(sizes, dim=2))), dim=2)
        assert relative_error(streamed, whole) <= TOLERANCE
    with pytest.raises(ValueError, match="multiple of 4 frames, got 3"):
        list(vae.encode_stream(video.split([5, 3, 9], dim=2)))


def test_hunyuan_video_exact_but_for_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """With norms that have no statistics, nothing looks ahead and every stream is exact, in both directions."""

    def fixed(norm: ClipNorm, x: torch.Tensor, cache: Cache | None, *, activation: bool) -> object:
        weight, bias = (value.view(-1, 1, 1, 1) for value in (norm.weight, norm.bias))
        return lambda slab: F.silu(slab * weight + bias) if activation else slab * weight + bias

    monkeypatch.setattr(ClipNorm, "measure", fixed)
    vae, video = native("hunyuan_video"), noise(1, 3, 13, 16, 16)
    with torch.no_grad():
        latents = vae.encode(video)
        whole = vae.decode(latents)
        for sizes in ([1, 4, 4, 4], [5, 8]):
            pieces = vae.encode_stream(video.split(sizes, dim=2))
            assert relative_error(torch.cat(list(pieces), dim=2), latents) <= TOLERANCE
        for sizes in ([1, 1, 1, 1], [3, 1]):
            pieces = vae.decode_stream(latents.split(sizes, dim=2))
            assert relative_error(torch.cat(list(pieces), dim=2), whole) <= TOLERANCE
        changed = torch.cat([video[:, :, :5], -video[:, :, 5:]], dim=2)
        assert relative_error(vae.encode(changed)[:, :, :2], latents[:, :, :2]) <= TOLERANCE
        assert relative_error(vae.encode(video[:, :, :1]), latents[:, :, :1]) <= TOLERANCE


@torch.no_grad()
def test_hunyuan_video_stream_in_one_piece_is_whole() -> None:
    vae, latents = native("hunyuan_video"), torch.randn(1, 4, 3, 2, 2)
    (streamed,) = vae.decode_stream([latents])
    assert relative_error(streamed, vae.decode(latents)) <= TOLERANCE


@torch.no_grad()
def test_statistics_of_a_stream_become_those_of_the_clip() -> None:
    norm = randomize(ClipNorm(4, 8, 1e-6))
    x = 3 * torch.randn(2, 8, 7, 5, 3) + torch.arange(8).view(8, 1, 1, 1)
    cache: Cache = {}
    for piece in x.split([1, 4, 2], dim=2):
        last = norm.measure(piece, cache, activation=False)(piece)
    assert relative_error(last, F.group_norm(x, 4, norm.weight, norm.bias, 1e-6)[:, :, -2:]) <= 1e-5


@torch.no_grad()
def test_attention_makes_no_mask_and_a_stream_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    attend = F.scaled_dot_product_attention

    def watched(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        assert not args
        assert not kwargs
        sizes.append((q.shape[-2], k.shape[-2]))
        return attend(q, k, v)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    monkeypatch.setattr(hunyuan_layers, "ATTENTION_FRAMES", 2)
    attention = randomize(FrameCausalAttention(8, 4))
    x = torch.randn(1, 8, 5, 2, 3)
    attention(x)
    assert sizes == [(6, 6 * count) for count in (1, 2, 3, 4, 5)]
    sizes.clear()
    cache: Cache = {}
    for piece in x.split(1, dim=2):
        attention(piece, cache)
    assert sizes == [(6, 6 * count) for count in (1, 2, 3, 3, 3)]
    sizes.clear()
    attention(x, {})
    assert sizes == [(6, 6 * count) for count in (1, 2, 3, 3, 3)]


@pytest.mark.parametrize("border", ["zeros", "replicate"])
@pytest.mark.parametrize("temporal", [False, True])
@torch.no_grad()
def test_upsampling_is_doubling_and_convolution(border: str, temporal: bool) -> None:
    conv = torch.nn.Conv3d(3, 5, 3)
    x = torch.randn(2, 3, 4, 3, 4)
    first = F.interpolate(x[:, :, :1], scale_factor=(1, 2, 2))
    rest = F.interpolate(x[:, :, 1:], scale_factor=(2 if temporal else 1, 2, 2))
    padding = (1, 1, 1, 1, 2, 0)
    doubled = torch.cat([first, rest], dim=2)
    if border == "replicate":
        expected = conv(F.pad(doubled, padding, mode="replicate"))
    elif temporal:
        pytest.skip("no model doubles time with zeros before the clip")
    else:
        expected = conv(F.pad(doubled, padding))
    found = causal.upsample_conv(conv, conv.weight, conv.bias, x, None, border=border, temporal=temporal)
    assert relative_error(found, expected) <= 1e-6


@pytest.mark.parametrize("name", NATIVE)
def test_wrong_sizes_are_named(name: str) -> None:
    vae = native(name)
    with pytest.raises(ValueError, match=r"video must be \(B, 3, T, H, W\)"):
        vae.encode(noise(1, 4, 5, 16, 16))
    with pytest.raises(ValueError, match=r"latents must be \(B, 4, t, h, w\)"):
        vae.decode(noise(1, 5, 2, 2, 2))
