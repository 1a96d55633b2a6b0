from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch

from omnihuman_vae import CausalVAEConfig, CausalVideoVAE, presets
from omnihuman_vae.layers import Cache
from tests.vae.conftest import NARROW


@pytest.mark.parametrize("preset", [presets.tiny, presets.base], ids=["tiny", "base"])
def test_preset_shapes(preset):
    config = preset()
    spec = config.latent_spec
    assert (spec.channels, spec.temporal_stride, spec.spatial_stride) == (16, 4, 8)
    with torch.device("meta"):
        vae = CausalVideoVAE(config)
        latents = vae.encode(torch.empty(1, 3, 9, 64, 48))
        assert latents.shape == (1, 16, 3, 8, 6)
        assert vae.decode(latents).shape == (1, 3, 9, 64, 48)


def test_tiny_stays_small():
    with torch.device("meta"):
        vae = CausalVideoVAE(presets.tiny())
    assert sum(parameter.numel() for parameter in vae.parameters()) <= 3_600_000


def test_config_survives_a_table_with_lists():
    for config in NARROW.values():
        table = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}
        assert CausalVAEConfig(**table) == config


def test_strides_follow_from_the_steps():
    config = replace(presets.tiny(), patch_size=(2, 1, 1), temporal_downsample=(True,))
    assert (config.latent_spec.temporal_stride, config.latent_spec.spatial_stride) == (4, 2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("channels", ()),
        ("channels", (8, 0)),
        ("latent_channels", 0),
        ("temporal_kernel", 0),
        ("patch_size", (4, 4, 2)),
        ("patch_size", (4, 4)),
        ("spatial_downsample", (True, True)),
        ("temporal_downsample", ()),
        ("decoder_blocks", (1,)),
        ("encoder_blocks", (1, -1)),
        ("convolution", "depthwise"),
        ("norm_eps", 0.0),
    ],
)
def test_bad_config_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        replace(presets.tiny(), **{field: value})


def test_encoded_frames_have_no_gradient_from_later_pixels(vae, video):
    clip = video().requires_grad_()
    latents = vae.encode(clip)
    for i in range(latents.shape[2]):
        (gradient,) = torch.autograd.grad(latents[:, :, i].sum(), clip, retain_graph=True)
        end = vae.latent_spec.frame_range(i).stop
        assert bool((gradient[:, :, end:] == 0).all())
        assert bool((gradient[:, :, vae.latent_spec.frame_range(i)] != 0).any())


def test_decoded_frames_have_no_gradient_from_later_latents(vae):
    latents = torch.randn(1, vae.config.latent_channels, 3, 2, 3, requires_grad=True)
    frames = vae.decode(latents)
    for i in range(3):
        rows = vae.latent_spec.frame_range(i)
        (gradient,) = torch.autograd.grad(frames[:, :, rows].sum(), latents, retain_graph=True)
        assert bool((gradient[:, :, i + 1 :] == 0).all())
        assert bool((gradient[:, :, i] != 0).any())


@pytest.mark.parametrize("seed", range(6))
def test_any_split_streams_to_the_whole(vae, video, seed):
    stride = vae.latent_spec.temporal_stride
    clip = video(frames=1 + 6 * stride)
    with torch.no_grad():
        latents = vae.encode(clip)
        frames = vae.decode(latents)
        generator = torch.Generator().manual_seed(seed)
        cuts = [i for i in range(1, 7) if torch.rand((), generator=generator) < 0.4]
        sizes = [after - before for before, after in zip([0, *cuts], [*cuts, 7], strict=True)]
        pixel_sizes = [1 + (sizes[0] - 1) * stride, *(size * stride for size in sizes[1:])]
        encoded = list(vae.encode_stream(clip.split(pixel_sizes, dim=2)))
        decoded = list(vae.decode_stream(latents.split(sizes, dim=2)))
    assert [piece.shape[2] for piece in encoded] == sizes
    assert [piece.shape[2] for piece in decoded] == pixel_sizes
    torch.testing.assert_close(torch.cat(encoded, dim=2), latents, atol=1e-5, rtol=0)
    scale = max(1.0, frames.abs().max().item())
    torch.testing.assert_close(torch.cat(decoded, dim=2), frames, atol=1e-5 * scale, rtol=0)


def test_cache_does_not_grow_with_the_clip(vae):
    def held(cache: Cache) -> list[int]:
        return [tensor.untyped_storage().nbytes() for tensor in cache.values()]

    encoder: Cache = {}
    decoder: Cache = {}
    sizes = set()
    stride = vae.latent_spec.temporal_stride
    with torch.no_grad():
        for piece in range(6):
            frames = 1 + stride if piece == 0 else (1 + piece) * stride
            vae.encoder(torch.zeros(1, 3, frames, 16, 16), encoder, starts=piece == 0)
            vae.decoder(torch.zeros(1, vae.config.latent_channels, 1 + piece, 2, 2), decoder, starts=piece == 0)
            sizes.add((*held(encoder), *held(decoder)))
    assert len(sizes) == 1


def test_streams_do_not_disturb_each_other(narrow, video):
    vae = narrow("tiny")
    clips = [video(seed=1), video(seed=2)]
    with torch.no_grad():
        latents = [vae.encode(clip) for clip in clips]
        streams = [vae.decode_stream(piece.split(1, dim=2)) for piece in latents]
        interleaved = list(zip(*streams, strict=True))
        for index, piece in enumerate(latents):
            streamed = torch.cat([step[index] for step in interleaved], dim=2)
            torch.testing.assert_close(streamed, vae.decode(piece), atol=1e-5, rtol=0)


def test_latents_are_normalised_by_the_buffers(narrow, video):
    vae = narrow("tiny")
    clip = video()
    posterior = vae.posterior(clip)
    mean, std = (buffer.view(-1, 1, 1, 1) for buffer in (vae.latents_mean, vae.latents_std))
    torch.testing.assert_close(vae.encode(clip), (posterior.mean - mean) / std)
    torch.testing.assert_close(vae.decode(vae.encode(clip)), vae.reconstruct(posterior.mean))
    assert {"latents_mean", "latents_std"} <= set(vae.state_dict())


def test_drawn_latents_are_the_posteriors(narrow, video):
    vae = narrow("tiny")
    clip = video()
    sample = vae.posterior(clip).sample(torch.Generator().manual_seed(5))
    vae.set_latent_statistics(torch.zeros(6), torch.ones(6))
    assert torch.equal(vae.encode(clip, generator=torch.Generator().manual_seed(5)), sample)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (torch.zeros(5), torch.ones(6), "mean must have the shape"),
        (torch.zeros(6), torch.ones(1), "std must have the shape"),
        (torch.full((6,), float("nan")), torch.ones(6), "mean must be finite"),
        (torch.zeros(6), torch.zeros(6), "std must be positive"),
    ],
)
def test_bad_statistics_are_refused(narrow, mean, std, message):
    with pytest.raises(ValueError, match=message):
        narrow("tiny").set_latent_statistics(mean, std)


def test_a_fresh_skip_reconstructs_flat_video():
    torch.manual_seed(0)
    vae = CausalVideoVAE(presets.tiny())
    torch.nn.init.zeros_(vae.encoder.head.conv.weight)
    torch.nn.init.zeros_(vae.encoder.head.conv.bias)
    flat = torch.tensor([0.2, -0.7, 0.9]).view(1, 3, 1, 1, 1).expand(1, 3, 5, 8, 16)
    with torch.no_grad():
        torch.testing.assert_close(vae.decode(vae.encode(flat)), flat, atol=1e-5, rtol=0)


def test_half_precision_weights_keep_the_input_dtype(narrow, video):
    vae = narrow("tiny").to(torch.bfloat16)
    for dtype in (torch.float32, torch.bfloat16):
        latents = vae.encode(video().to(dtype))
        assert latents.dtype == vae.decode(latents).dtype == dtype
        assert next(vae.decode_stream([latents])).dtype == dtype


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 8, 16, 16), "frames must be 1 \\+ a multiple of 4"),
        ((1, 3, 0, 16, 16), "frames must be"),
        ((1, 3, 5, 12, 16), "height must be a multiple of 8"),
        ((1, 3, 5, 16, 20), "width must be a multiple of 8"),
        ((1, 4, 5, 16, 16), "video must be"),
        ((3, 5, 16, 16), "video must be"),
    ],
)
def test_bad_video_is_refused(vae, shape, message):
    with pytest.raises(ValueError, match=message):
        vae.encode(torch.zeros(shape))


def test_bad_pieces_and_latents_are_refused(vae):
    channels = vae.config.latent_channels
    stream = vae.encode_stream([torch.zeros(1, 3, 1, 16, 16), torch.zeros(1, 3, 5, 16, 16)])
    next(stream)
    with pytest.raises(ValueError, match="a later piece of a video must have a multiple of 4 frames, got 5"):
        next(stream)
    for shape in [(1, channels + 1, 1, 2, 2), (channels, 1, 2, 2), (1, channels, 0, 2, 2)]:
        with pytest.raises(ValueError, match="latents must be"):
            vae.decode(torch.zeros(shape))
    with pytest.raises(ValueError, match="latents must be"):
        next(vae.decode_stream([torch.zeros(1, channels, 0, 2, 2)]))
