"""Equality with diffusers' HunyuanVideo-1.5: dual-stream blocks, three kinds of text tokens, picture by channels."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import pad

from omnihuman_core.config import from_table, to_toml
from omnihuman_core.contracts import Conditioning, PoseCondition, StateDictAdapter, TextCondition
from omnihuman_core.mmdit import MMDiT, MMDiTConfig
from omnihuman_core.mmdit.config import TextGroups
from omnihuman_core.mmdit.presets import hunyuan_video, hunyuan_video_15
from omnihuman_core.mmdit.state_dict_adapter import HunyuanVideo15DiffusersAdapter

from .builders import build, config

diffusers = pytest.importorskip("diffusers")

GROUPS = TextGroups(prompt_tokens=5, glyph_tokens=4, glyph_dim=10, picture_dim=8)
BASE = config(
    patch_size=(1, 1, 1), num_single_blocks=0, audio_dim=None, audio_blocks=(), segment_embedding=False,
    pooled_dim=None, embedded_guidance=None, text_groups=GROUPS, pose_channels=5,
)  # fmt: skip
SIZES = {
    "in_channels": 9, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2,
    "num_refiner_layers": 2, "text_embed_dim": 12, "text_embed_2_dim": 10, "image_embed_dim": 8,
    "rope_axes_dim": (4, 6, 6),
}  # fmt: skip


def public_model():
    torch.manual_seed(0)
    model = diffusers.HunyuanVideo15Transformer3DModel(**SIZES).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    # A random hidden layer of 2048 would drown the other tokens.
    torch.nn.init.normal_(model.context_embedder_2.linear_2.weight, std=0.02)
    torch.nn.init.normal_(model.context_embedder_2.linear_3.weight, std=0.02)
    torch.nn.init.normal_(model.image_embedder.norm_out.weight)
    return model


def load(public):
    model = MMDiT(BASE).eval()
    model.load_state_dict(HunyuanVideo15DiffusersAdapter(BASE).to_native(public.state_dict()))
    return model


def draw():
    """Latents, levels, prompt, words, picture and channels; two samples with different masks."""
    torch.manual_seed(1)
    prompt, glyphs, picture = torch.randn(2, 5, 12), torch.randn(2, 4, 10), torch.randn(2, 3, 8)
    prompt_mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    glyph_mask = torch.tensor([[True, True, False, False], [False] * 4])
    channels = torch.zeros(2, 5, 3, 4, 6)
    channels[:, :4, 0], channels[:, 4, 0] = torch.randn(2, 4, 4, 6), 1.0
    latents, sigma = torch.randn(2, 4, 3, 4, 6), torch.tensor([0.3, 0.9])
    return latents, sigma, (prompt, prompt_mask), (glyphs, glyph_mask), picture, channels


def run_public(model, latents, sigma, prompt, glyphs, picture, channels):
    with torch.no_grad():
        return model(
            torch.cat([latents, channels], dim=1),
            (1000 * sigma).to(latents.dtype),
            prompt[0],
            prompt[1].to(latents.dtype),
            encoder_hidden_states_2=glyphs[0],
            encoder_attention_mask_2=glyphs[1].to(latents.dtype),
            image_embeds=picture,
        ).sample


def run_ours(model, latents, sigma, prompt, glyphs, picture, channels):
    parts = [prompt, (pad(glyphs[0], (0, 2)), glyphs[1])]
    if picture is not None:
        parts.append((pad(picture, (0, 4)), torch.ones(picture.shape[:2], dtype=torch.bool)))
    text = TextCondition(tokens=torch.cat([part[0] for part in parts], 1), mask=torch.cat([p[1] for p in parts], 1))
    with torch.no_grad():
        return model(latents, sigma, Conditioning(text=text, pose=PoseCondition(features=channels)))


def relative_error(got, want):
    return ((got - want).norm() / want.norm()).item()


def test_image_to_video_is_that_of_diffusers():
    public, inputs = public_model(), draw()
    assert relative_error(run_ours(load(public), *inputs), run_public(public, *inputs)) <= 1e-5


def test_text_to_video_has_no_picture_tokens():
    public, model, (*inputs, picture, channels) = public_model(), load(public_model()), draw()
    nothing = torch.zeros_like(channels)
    want = run_public(public, *inputs, torch.zeros_like(picture), nothing)
    assert relative_error(run_ours(model, *inputs, None, nothing), want) <= 1e-5


def test_every_kind_of_text_matters_in_that_comparison():
    public, (latents, sigma, prompt, glyphs, picture, channels) = public_model(), draw()
    want = run_public(public, latents, sigma, prompt, glyphs, picture, channels)
    for changed in (
        ((prompt[0], torch.ones_like(prompt[1])), glyphs, picture, channels),
        (prompt, (glyphs[0], torch.ones_like(glyphs[1])), picture, channels),
        (prompt, (-glyphs[0], glyphs[1]), picture, channels),
        (prompt, glyphs, -picture, channels),
        (prompt, glyphs, picture, -channels),
    ):
        assert relative_error(run_public(public, latents, sigma, *changed), want) > 1e-3


def test_bf16_error_is_within_twice_that_of_diffusers():
    public, inputs = public_model(), draw()
    model, exact = load(public), run_public(public, *inputs)

    def cast(value):
        return (
            tuple(map(cast, value))
            if isinstance(value, tuple)
            else value.bfloat16()
            if value.is_floating_point()
            else value
        )

    half = [inputs[1] if value is inputs[1] else cast(value) for value in inputs]
    theirs = run_public(public.bfloat16(), *half).float()
    ours = run_ours(model.bfloat16(), *half).float()
    assert relative_error(ours, exact) <= 2 * relative_error(theirs, exact)


def test_round_trip_is_bit_for_bit():
    layout = HunyuanVideo15DiffusersAdapter(BASE)
    assert isinstance(layout, StateDictAdapter)
    public = public_model().state_dict()
    back = layout.from_native(layout.to_native(public))
    assert back.keys() == public.keys()
    assert all(torch.equal(back[name], public[name]) for name in public)
    extended = replace(BASE, audio_dim=6, audio_blocks=(0, 1), segment_embedding=True)
    state, layout = build(extended).state_dict(), HunyuanVideo15DiffusersAdapter(extended)
    again = layout.to_native(layout.from_native(state))
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_full_size_key_map_is_complete():
    with torch.device("meta"):
        public = diffusers.HunyuanVideo15Transformer3DModel().state_dict()
        ours = MMDiT(hunyuan_video_15()).state_dict()
    layout = HunyuanVideo15DiffusersAdapter(hunyuan_video_15())
    assert {k: v.shape for k, v in layout.to_native(public).items()} == {k: v.shape for k, v in ours.items()}
    assert {k: v.shape for k, v in layout.from_native(ours).items()} == {k: v.shape for k, v in public.items()}


def test_refusals():
    with pytest.raises(ValueError, match="text_groups; start from the preset"):
        HunyuanVideo15DiffusersAdapter(hunyuan_video())
    with pytest.raises(ValueError, match="text_groups need a text_refiner_depth"):
        replace(BASE, text_refiner_depth=0)
    with pytest.raises(ValueError, match=r"TextGroups\.glyph_dim"):
        replace(GROUPS, glyph_dim=0)


def test_the_architecture_goes_through_a_file():
    import tomllib

    assert from_table(MMDiTConfig, tomllib.loads(to_toml(hunyuan_video_15()))) == hunyuan_video_15()
    assert from_table(MMDiTConfig, tomllib.loads(to_toml(hunyuan_video()))) == hunyuan_video()
