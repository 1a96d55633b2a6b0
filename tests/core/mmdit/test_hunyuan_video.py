"""Equality with diffusers' HunyuanVideo, and the key maps of both public layouts."""

from dataclasses import replace

import pytest
import torch

from omnihuman_core.contracts import (
    AudioCondition,
    Conditioning,
    MotionCondition,
    PoseCondition,
    StateDictAdapter,
    TextCondition,
)
from omnihuman_core.mmdit import MMDiT, hunyuan_video
from omnihuman_core.mmdit.state_dict_adapter import (
    HunyuanVideoDiffusersAdapter,
    HunyuanVideoLatentConcatAdapter,
    HunyuanVideoOriginalAdapter,
)
from tests.public_models import hunyuan_transformer

from .builders import build, config

diffusers = pytest.importorskip("diffusers")

BASE = config(audio_dim=None, audio_blocks=(), pose_channels=None, segment_embedding=False)
EXTENDED = config()
ADAPTERS = [HunyuanVideoDiffusersAdapter, HunyuanVideoOriginalAdapter]


def draw():
    torch.manual_seed(1)
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    text = TextCondition(tokens=torch.randn(2, 5, 12), mask=mask, pooled=torch.randn(2, 10))
    return torch.randn(2, 4, 3, 8, 6), torch.tensor([0.3, 0.9]), text


def run_public(model, hidden, sigma, text, guidance=6.0):
    with torch.no_grad():
        return model(
            hidden,
            1000 * sigma,
            text.tokens,
            text.mask.to(hidden.dtype),
            text.pooled,
            guidance=None if guidance is None else torch.full_like(sigma, 1000 * guidance),
        ).sample


def run_ours(model, latents, sigma, **conditions):
    with torch.no_grad():
        return model(latents, sigma, Conditioning(**conditions))


def load(architecture, adapter, state):
    model = MMDiT(architecture).eval()
    model.load_state_dict(adapter(architecture).to_native(state))
    return model


def relative_error(got, want):
    return ((got - want).norm() / want.norm()).item()


@pytest.mark.parametrize("guidance", [6.0, None])
def test_text_to_video_is_that_of_diffusers(guidance):
    public = hunyuan_transformer(guidance_embeds=guidance is not None)
    model = load(replace(BASE, embedded_guidance=guidance), HunyuanVideoDiffusersAdapter, public.state_dict())
    latents, sigma, text = draw()
    want = run_public(public, latents, sigma, text, guidance)
    assert relative_error(run_ours(model, latents, sigma, text=text), want) <= 1e-5


def test_text_mask_and_guidance_matter_in_that_comparison():
    public = hunyuan_transformer()
    latents, sigma, text = draw()
    want = run_public(public, latents, sigma, text)
    unmasked = replace(text, mask=torch.ones_like(text.mask))
    assert relative_error(run_public(public, latents, sigma, unmasked), want) > 1e-3
    assert relative_error(run_public(public, latents, sigma, text, guidance=1.0), want) > 1e-3


def test_bf16_error_is_within_twice_that_of_diffusers():
    public = hunyuan_transformer()
    model = load(BASE, HunyuanVideoDiffusersAdapter, public.state_dict())
    latents, sigma, text = draw()
    exact = run_public(public, latents, sigma, text)
    cast = latents.bfloat16(), sigma, replace(text, tokens=text.tokens.bfloat16(), pooled=text.pooled.bfloat16())
    theirs = run_public(public.bfloat16(), *cast).float()
    ours = run_ours(model.bfloat16(), *cast[:2], text=cast[2]).float()
    assert relative_error(ours, exact) <= 2 * relative_error(theirs, exact)


@pytest.mark.parametrize("guidance", [6.0, None])
def test_image_to_video_by_token_replacement_is_motion(guidance):
    public = hunyuan_transformer(image_condition_type="token_replace", guidance_embeds=guidance is not None)
    model = load(replace(BASE, embedded_guidance=guidance), HunyuanVideoDiffusersAdapter, public.state_dict())
    latents, sigma, text = draw()
    want = run_public(public, latents, sigma, text, guidance)[:, :, 1:]
    motion = MotionCondition(latents=latents[:, :, :1])
    assert relative_error(run_ours(model, latents[:, :, 1:], sigma, text=text, motion=motion), want) <= 1e-5


def test_image_to_video_by_channels():
    public = hunyuan_transformer(in_channels=9, image_condition_type="latent_concat")
    architecture = replace(BASE, pose_channels=5)
    model = load(architecture, HunyuanVideoLatentConcatAdapter, public.state_dict())
    latents, sigma, text = draw()
    features = torch.zeros(2, 5, 3, 8, 6)
    features[:, :4, 0], features[:, 4, 0] = torch.randn(2, 4, 8, 6), 1.0
    want = run_public(public, torch.cat([latents, features], dim=1), sigma, text)
    got = run_ours(model, latents, sigma, text=text, pose=PoseCondition(features=features))
    assert relative_error(got, want) <= 1e-5
    back = HunyuanVideoLatentConcatAdapter(architecture).from_native(model.state_dict())
    assert all(torch.equal(value, public.state_dict()[name]) for name, value in back.items())


def test_original_layout_is_that_which_diffusers_converts():
    # That conversion knows the real width only. It splits rows, so two columns of every weight are enough.
    single_file = pytest.importorskip("diffusers.loaders.single_file_utils")
    architecture = replace(hunyuan_video(), num_double_blocks=2, num_single_blocks=2)
    original_layout = HunyuanVideoOriginalAdapter(architecture)
    with torch.device("meta"):
        shapes = original_layout.from_native(MMDiT(architecture).state_dict())
    torch.manual_seed(0)
    original = {
        name: torch.randn(like.shape if "img_in" in name or like.ndim == 1 else (like.shape[0], 2))
        for name, like in shapes.items()
    }
    converted = single_file.convert_hunyuan_video_transformer_to_diffusers(dict(original))
    want = HunyuanVideoDiffusersAdapter(architecture).from_native(original_layout.to_native(original))
    assert converted.keys() == want.keys()
    assert all(torch.equal(converted[name], want[name]) for name in want)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("architecture", [BASE, EXTENDED], ids=["base", "with our paths"])
def test_round_trip_is_bit_for_bit(adapter, architecture):
    state = build(architecture).state_dict()
    layout = adapter(architecture)
    assert isinstance(layout, StateDictAdapter)
    back = layout.to_native(layout.from_native(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_full_size_key_map_is_complete():
    with torch.device("meta"):
        public = diffusers.HunyuanVideoTransformer3DModel().state_dict()
        ours = MMDiT(hunyuan_video()).state_dict()
    native = HunyuanVideoDiffusersAdapter(hunyuan_video()).to_native(public)
    assert {k: v.shape for k, v in native.items()} == {k: v.shape for k, v in ours.items()}
    back = HunyuanVideoDiffusersAdapter(hunyuan_video()).from_native(ours)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in public.items()}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_foreign_and_half_packed_keys_are_named(adapter):
    layout = adapter(BASE)
    public = layout.from_native(build(BASE).state_dict())
    with pytest.raises(ValueError, match=r"blocks\.99\.alien"):
        layout.to_native(public | {"blocks.99.alien": torch.zeros(1)})
    if adapter is HunyuanVideoDiffusersAdapter:
        del public["transformer_blocks.1.attn.to_k.weight"]
        with pytest.raises(ValueError, match=r"transformer_blocks\.1\.attn\.to_k\.weight"):
            layout.to_native(public)


def test_layout_refuses_another_structure():
    with pytest.raises(ValueError, match="modulation"):
        HunyuanVideoDiffusersAdapter(replace(BASE, modulation="shared"))


def test_fresh_paths_leave_the_base_exactly_as_it_was():
    base = build(BASE)
    model = MMDiT(EXTENDED).eval()
    report = model.load_state_dict(base.state_dict(), strict=False)
    assert report.unexpected_keys == []
    assert all("audio" in name or "pose_proj" in name or name == "segment_embed" for name in report.missing_keys)
    latents, sigma, text = draw()
    want = run_ours(base, latents, sigma, text=text)
    audio = AudioCondition(tokens=torch.randn(2, 3, 2, 6))
    pose = PoseCondition(features=torch.randn(2, 3, 3, 8, 6))
    assert torch.equal(run_ours(model, latents, sigma, text=text), want)
    assert torch.equal(run_ours(model, latents, sigma, text=text, audio=audio, pose=pose), want)
