"""How each condition enters the MMDiT (paper section 3.2)."""

import weakref
from dataclasses import replace

import pytest
import torch

from omnihuman_core.contracts import Backbone, Conditioning, ReferenceCondition
from omnihuman_core.flow import Guidance, guided
from omnihuman_core.mmdit import MMDiT, hunyuan_video, small, tiny
from omnihuman_core.mmdit import layers as layers_module
from omnihuman_core.mmdit.layers import TimestepEmbedder

from .builders import build, config, inputs

VARIANTS = {
    "hunyuan": {},
    "shared modulation": {"modulation": "shared", "text_refiner_depth": 0, "embedded_guidance": None},
    "clean as noisy": {"clean_modulation": "shared"},
    "double only": {"num_single_blocks": 0, "audio_blocks": (0, 1)},
    "single only": {"num_double_blocks": 0, "audio_blocks": (1,)},
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS, scope="module")
def model(request):
    return build(config(**request.param))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(1)
    with torch.no_grad():
        yield


def without(conditioning, *names):
    return replace(conditioning, **dict.fromkeys(names))


def test_velocity_has_the_shape_and_dtype_of_the_latents(model):
    latents, sigma, conditioning = inputs()
    assert isinstance(model, Backbone)
    out = model(latents.bfloat16(), sigma, conditioning)
    assert (out.shape, out.dtype) == (latents.shape, torch.bfloat16)


@pytest.mark.parametrize("name", ["text", "audio", "pose", "reference"])
def test_each_condition_is_optional_and_felt(model, name):
    latents, sigma, conditioning = inputs()
    changed = replace(
        conditioning, **{name: getattr(conditioning, name).map(lambda x: x if x.dtype == torch.bool else 2 * x)}
    )
    full = model(latents, sigma, conditioning)
    for other in (without(conditioning, name), changed):
        assert (model(latents, sigma, other) - full).abs().mean() > 1e-3


def test_nothing_at_all_is_legal(model):
    latents, sigma, conditioning = inputs(motion=0)
    conditioning = without(conditioning, "motion", "audio", "pose")
    assert not torch.isclose(
        model(latents, sigma, Conditioning()), model(latents, sigma, conditioning), atol=1e-3
    ).all()


def test_samples_do_not_influence_each_other(model):
    latents, sigma, conditioning = inputs(batch=3)
    whole = model(latents, sigma, conditioning)
    for sample in range(3):
        alone = model(
            latents[sample : sample + 1], sigma[sample : sample + 1], conditioning.map(lambda x, i=sample: x[i : i + 1])
        )
        torch.testing.assert_close(whole[sample : sample + 1], alone, atol=1e-4, rtol=1e-4)


def test_training_and_sampling_agree(model):
    latents, sigma, conditioning = inputs()
    sampled = model(latents, sigma, conditioning)
    with torch.enable_grad():
        trained = model(latents, sigma, conditioning)
    torch.testing.assert_close(trained.detach(), sampled, atol=1e-4, rtol=1e-4)


def test_masked_text_tokens_have_no_influence(model):
    latents, sigma, conditioning = inputs()
    tokens = conditioning.text.tokens.clone()
    tokens[~conditioning.text.mask] = 30.0
    other = replace(conditioning, text=replace(conditioning.text, tokens=tokens))
    torch.testing.assert_close(model(latents, sigma, other), model(latents, sigma, conditioning), atol=1e-5, rtol=1e-5)


def test_audio_is_heard_by_its_own_frame_only():
    # One block whose attention adds nothing: only the audio path can carry a change, and it must not cross frames.
    model = build(config(num_double_blocks=0, num_single_blocks=1, audio_blocks=(0,)))
    model.single_blocks[0].linear2.weight.zero_()
    latents, sigma, conditioning = inputs(frames=3, motion=2)
    tokens = conditioning.audio.tokens.clone()
    tokens[:, 2 + 1] += 1.0
    changed = replace(conditioning, audio=replace(conditioning.audio, tokens=tokens))
    moved = (model(latents, sigma, changed) - model(latents, sigma, conditioning)).abs().amax(dim=(0, 1, 3, 4))
    assert moved[1] > 1e-4
    assert moved[0] == moved[2] == 0


@pytest.fixture
def heard():
    """A model in use, its inputs, and the layers that made keys and values, a row a call."""
    model, calls = build(config()), []
    for layer in [*model.double_blocks, *model.single_blocks]:
        layer.audio.kv.register_forward_hook(lambda module, args, out: calls.append(out))
    return model, inputs(), calls


def test_a_clip_is_heard_once_for_all_steps(heard):
    model, (latents, sigma, conditioning), calls = heard
    first = model(latents, sigma, conditioning)
    assert len(calls) == 4
    assert torch.equal(model(latents, sigma, conditioning), first)
    model(latents, sigma / 2, replace(conditioning, pose=None))
    assert len(calls) == 4
    model(latents, sigma, replace(conditioning, audio=conditioning.audio.map(torch.clone)))
    assert len(calls) == 8


@pytest.mark.parametrize("name", ["kv.weight", "kv.bias", "norm.weight", "norm.bias", "qk_norm.k_weight"])
def test_new_weights_hear_a_clip_anew(heard, name):
    model, (latents, sigma, conditioning), _ = heard
    model(latents, sigma, conditioning)
    model.single_blocks[1].audio.get_parameter(name).mul_(2)
    again = model(latents, sigma, conditioning)
    fresh = model(latents, sigma, replace(conditioning, audio=conditioning.audio.map(torch.clone)))
    assert torch.equal(again, fresh)


def test_new_sound_in_the_same_tensor_is_heard(heard):
    model, (latents, sigma, conditioning), calls = heard
    model(latents, sigma, conditioning)
    conditioning.audio.tokens.add_(1)
    model(latents, sigma, conditioning)
    assert len(calls) == 8


def test_training_hears_every_step_and_forgets(heard):
    model, (latents, sigma, conditioning), calls = heard
    model(latents, sigma, conditioning)
    with torch.enable_grad():
        model(latents, sigma, conditioning)
    assert len(calls) == 8
    model.train().eval()
    model(latents, sigma, conditioning)
    assert len(calls) == 12


def test_guidance_hears_both_branches_once(heard):
    model, (latents, sigma, conditioning), calls = heard
    silence = conditioning.map(lambda x: x if x.dtype == torch.bool else 0 * x)
    first = guided(model, latents, sigma, conditioning, silence, Guidance())
    assert torch.equal(guided(model, latents, sigma, conditioning, silence, Guidance()), first)
    assert len(calls) == 4
    other = guided(model, latents, sigma, conditioning, conditioning, Guidance())
    assert not torch.equal(other, first)
    split = guided(model, latents, sigma, conditioning, conditioning, Guidance(mode="split"))
    torch.testing.assert_close(split, other, atol=1e-4, rtol=1e-4)


def test_a_clip_is_forgotten_with_its_tokens():
    model, given = build(config()), inputs()
    model(*given)
    # Of this model alone: other tests' clips live as long as their tokens.
    heard = [layers.get(module) for layers in layers_module._HEARD.values() for module in model.modules()]
    made = [weakref.ref(entry[1].k) for entry in heard if entry is not None]
    assert len(made) == 4
    del heard
    del given
    assert all(ref() is None for ref in made)


def test_reference_and_text_hear_nothing():
    model = build(config(num_double_blocks=0, num_single_blocks=1, audio_blocks=(0,)))
    seen = {}
    model.single_blocks[0].register_forward_hook(lambda module, args, out: seen.update(out=out))
    latents, sigma, conditioning = inputs()
    model(latents, sigma, conditioning)
    loud = seen["out"]
    model(latents, sigma, without(conditioning, "audio"))
    changed = (loud - seen["out"]).abs().amax(dim=(0, 2)) > 0
    reference, text = 2 * 3, conditioning.text.tokens.shape[1]
    assert not changed[:reference].any()
    assert not changed[-text:].any()
    assert changed[reference:-text].all()


def test_pose_is_stacked_on_the_channel_axis():
    model = build(config())
    latents, pose = torch.randn(2, 4, 3, 4, 6), torch.randn(2, 3, 3, 4, 6)
    embed = model.patch_embed
    kernel = torch.cat([embed.proj.weight.view(32, 4, 1, 2, 2), embed.pose_proj.weight.view(32, 3, 1, 2, 2)], dim=1)
    stacked = torch.cat([latents, pose], dim=1)
    want = torch.nn.functional.conv3d(stacked, kernel, embed.proj.bias, stride=(1, 2, 2)).flatten(2).mT
    torch.testing.assert_close(embed(latents, pose), want, atol=1e-5, rtol=1e-5)


def test_reference_slot_reaches_the_rotation():
    latents, sigma, conditioning = inputs()
    model, moved = (build(config(reference_slot=slot)) for slot in (0, -1))
    assert torch.equal(*(each(latents, sigma, without(conditioning, "reference")) for each in (model, moved)))
    assert not torch.equal(*(each(latents, sigma, conditioning) for each in (model, moved)))


def test_reference_may_have_its_own_size():
    latents, sigma, conditioning = inputs()
    wide = replace(conditioning, reference=ReferenceCondition(latents=torch.randn(2, 4, 2, 6, 4)))
    assert build(config())(latents, sigma, wide).shape == latents.shape


def test_video_follows_motion_in_time():
    # Motion frames in front of one video are the first frames of a longer one, but for modulation and segment vectors.
    plain = {"clean_modulation": "shared", "segment_embedding": False}
    model = build(config(**plain))
    latents, sigma, conditioning = inputs(frames=3, motion=2)
    whole = torch.cat([conditioning.motion.latents, latents], dim=2)
    want = model(whole, sigma, without(conditioning, "motion"))[:, :, 2:]
    torch.testing.assert_close(model(latents, sigma, conditioning), want, atol=1e-4, rtol=1e-4)


def modulation_rows(model, name, *args):
    seen = []
    handle = getattr(model, name)[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    model(*args)
    handle.remove()
    return seen[0][-1] if name == "double_blocks" else seen[0][1]


def test_clean_tokens_are_modulated_as_noise_free():
    model = build(config(embedded_guidance=None))
    latents, sigma, conditioning = inputs()
    block_inputs = modulation_rows(model, "double_blocks", latents, sigma, conditioning)
    still = modulation_rows(model, "double_blocks", latents, torch.zeros_like(sigma), conditioning)
    assert block_inputs.segments == ((1 + 2) * 6, 3 * 6)
    assert torch.equal(block_inputs.condition[:, 0], still.condition[:, 1])
    assert not torch.isclose(block_inputs.condition[:, 1], still.condition[:, 1]).all()


def test_without_clean_tokens_there_is_one_modulation():
    model = build(config())
    latents, sigma, conditioning = inputs(motion=0)
    block_inputs = modulation_rows(
        model, "double_blocks", latents, sigma, without(conditioning, "motion", "reference", "audio", "pose")
    )
    assert block_inputs.segments == (3 * 6,)
    assert block_inputs.condition.shape[1] == 1


def test_sigma_enters_as_a_thousandth_step():
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    torch.manual_seed(0)
    mine, theirs = TimestepEmbedder(16), embeddings.TimestepEmbedding(256, 16)
    theirs.linear_1.load_state_dict(mine.mlp.up.state_dict())
    theirs.linear_2.load_state_dict(mine.mlp.down.state_dict())
    sigma = torch.tensor([0.0, 0.3, 1.0])
    table = embeddings.Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)(1000 * sigma)
    torch.testing.assert_close(mine(sigma), theirs(table), atol=1e-5, rtol=1e-5)


def test_a_fresh_model_predicts_zero_and_learns():
    model = MMDiT(config())
    latents, sigma, conditioning = inputs()
    assert not model(latents, sigma, conditioning).any()
    with torch.enable_grad():
        target = torch.randn_like(latents)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(12):
            loss = (model(latents, sigma, conditioning) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("preset", [tiny, small, hunyuan_video, lambda: hunyuan_video(audio_dim=768, pose_channels=16)])
def test_presets_build_and_say_what_they_need(preset):
    with torch.device("meta"):
        model = MMDiT(preset())
    spec = model.spec
    assert {"text", "reference", "motion"} <= spec.conditions
    assert ("audio" in spec.conditions) == (spec.audio_dim is not None)
    assert (spec.spatial_multiple, spec.temporal_multiple, spec.latent_channels) == (2, 1, 16)
    assert MMDiT.config_class is type(model.config)


def test_tiny_fits_its_budget():
    with torch.device("meta"):
        assert sum(p.numel() for p in MMDiT(tiny()).parameters()) <= 9_000_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "num_heads"),
        ({"rope_dims": (4, 4, 4)}, "rope_dims"),
        ({"rope_dims": (5, 5, 6)}, "rope_dims"),
        ({"audio_blocks": (4,)}, "audio_blocks"),
        ({"audio_blocks": ()}, "audio_blocks"),
        ({"patch_size": (0, 2, 2)}, "patch_size"),
        ({"patch_size": (1, 2, 1)}, "square in space"),
        ({"patch_size": (2, 2, 2)}, "audio and reference need 1"),
        ({"text_dim": None}, "text_dim"),
        ({"modulation": "own"}, "modulation"),
        ({"clean_modulation": "own"}, "clean_modulation"),
        ({"num_double_blocks": 0, "num_single_blocks": 0}, "block"),
    ],
)
def test_bad_architectures_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


BAD_INPUTS = {
    "sigma": lambda latents, sigma, c: (latents, sigma[:1], c),
    "multiple": lambda latents, sigma, c: (latents[..., :3], sigma, c),
    "batch": lambda latents, sigma, c: (latents[:1], sigma[:1], c),
    "text.pooled": lambda latents, sigma, c: (latents, sigma, replace(c, text=replace(c.text, pooled=None))),
    "pose.features": lambda latents, sigma, c: (
        latents,
        sigma,
        replace(c, pose=replace(c.pose, features=c.pose.features[..., :2])),
    ),
    "motion.latents": lambda latents, sigma, c: (
        latents,
        sigma,
        replace(c, motion=replace(c.motion, latents=c.motion.latents[..., :2])),
    ),
    "reference.latents": lambda latents, sigma, c: (
        latents,
        sigma,
        replace(c, reference=replace(c.reference, latents=c.reference.latents[..., :3])),
    ),
}


@pytest.mark.parametrize("named", BAD_INPUTS)
def test_bad_inputs_are_refused(named):
    with pytest.raises(ValueError, match=named) as caught:
        build(config())(*BAD_INPUTS[named](*inputs()))
    assert "\n" not in str(caught.value)


def test_a_condition_without_a_path_is_refused():
    with pytest.raises(ValueError, match="audio"):
        build(config(audio_dim=None, audio_blocks=()))(*inputs())
