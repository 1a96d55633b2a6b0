from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from omnihuman_core.contracts.objective import Objective
from omnihuman_vae.discriminator import ImageAndVideoDiscriminator, PatchDiscriminator
from omnihuman_vae.objective import VAEObjective, VAEObjectiveConfig
from omnihuman_vae.perceptual import VGGDistance

from .vgg import vgg_weights


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def reconstruct(vae, clip):
    with torch.no_grad():
        return vae.reconstruct(vae.posterior(clip).sample(seeded()))


def test_loss_is_l1_plus_weighted_kl(narrow, video):
    vae, clip = narrow("tiny"), video()
    objective = VAEObjective(VAEObjectiveConfig(kl_weight=0.3))
    assert isinstance(objective, Objective)
    out = objective(vae, {"video": clip}, generator=seeded())
    expected = F.l1_loss(reconstruct(vae, clip), clip) + 0.3 * vae.posterior(clip).kl().mean()
    torch.testing.assert_close(out.loss, expected)
    mse = F.mse_loss(reconstruct(vae, clip) / 2, clip / 2)
    torch.testing.assert_close(out.metrics["psnr"], -10 * mse.log10())
    assert not any(metric.requires_grad for metric in out.metrics.values())


def test_charbonnier_is_quadratic_when_small_and_absolute_when_large(narrow, video):
    vae, clip = narrow("tiny"), video()
    error = reconstruct(vae, clip) - clip
    for epsilon, expected in ((1e-4, error.abs().mean()), (1e3, error.square().mean() / 2e3)):
        config = VAEObjectiveConfig(reconstruction="charbonnier", charbonnier_epsilon=epsilon, kl_weight=0.0)
        # sqrt(e^2 + s^2) - s cancels in fp32 for a large s.
        out = VAEObjective(config)(vae, {"video": clip}, generator=seeded())
        torch.testing.assert_close(out.loss, expected, rtol=0.15, atol=2e-4)


def test_weights_pick_the_pixels_and_keep_the_scale(narrow, video):
    vae, clip = narrow("tiny"), video()
    objective = VAEObjective(VAEObjectiveConfig(kl_weight=0.0))
    mask = torch.zeros(1, 1, *clip.shape[2:])
    mask[..., :4, :4] = 7.0
    out = objective(vae, {"video": clip, "weight": mask}, generator=seeded())
    expected = F.l1_loss(reconstruct(vae, clip)[..., :4, :4], clip[..., :4, :4])
    torch.testing.assert_close(out.loss, expected)
    plain = objective(vae, {"video": clip}, generator=seeded()).loss
    even = objective(vae, {"video": clip, "weight": torch.full_like(mask, 3.0)}, generator=seeded()).loss
    torch.testing.assert_close(even, plain)
    with pytest.raises(ValueError, match="weight"):
        objective(vae, {"video": clip, "weight": mask[:, :, :1]})


def test_one_batch_is_learnt(narrow, video):
    vae = narrow("tiny").train()
    # Smooth content: what a clip is, and what noise is not.
    clip = F.interpolate(video(2, 4, 4, batch=2), size=(9, 16, 16), mode="trilinear")
    objective = VAEObjective(VAEObjectiveConfig(reconstruction="charbonnier"))
    optimizer = torch.optim.AdamW(vae.parameters(), lr=5e-3, weight_decay=0.0)
    psnr = []
    for _ in range(50):
        out = objective(vae, {"video": clip}, generator=seeded())
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        psnr.append(out.metrics["psnr"].item())
    assert psnr[-1] > 22
    assert psnr[-1] > psnr[0] + 8


def test_every_parameter_learns(vae, video):
    VAEObjective()(vae, {"video": video()}, generator=seeded()).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in vae.parameters())


def test_perceptual_term_is_the_callers(narrow, video):
    vae, clip = narrow("tiny"), video()
    config = VAEObjectiveConfig(kl_weight=0.0, perceptual_weight=2.0)
    out = VAEObjective(config, perceptual=lambda a, b: F.mse_loss(a, b))(vae, {"video": clip}, generator=seeded())
    decoded = reconstruct(vae, clip)
    torch.testing.assert_close(out.loss, F.l1_loss(decoded, clip) + 2 * F.mse_loss(decoded, clip))


class MeanIntensity(nn.Module):
    """A discriminator that takes bright video for real."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, video):
        return (self.scale * video.mean(dim=(1, 2, 3, 4)), self.scale * video.amax())


def test_adversarial_terms_are_the_hinge_game(narrow, video):
    vae, clip = narrow("tiny"), video()
    discriminator = MeanIntensity()
    objective = VAEObjective(VAEObjectiveConfig(kl_weight=0.0, adversarial_weight=0.5), discriminator=discriminator)
    decoded = reconstruct(vae, clip)
    score = (2 * decoded.mean() + 2 * decoded.amax()) / 2
    out = objective(vae, {"video": clip}, generator=seeded())
    torch.testing.assert_close(out.loss, F.l1_loss(decoded, clip) - 0.5 * score)
    out.loss.backward()
    assert discriminator.scale.grad is None

    vae.zero_grad()
    with_term, made = objective.generator_loss(vae, {"video": clip}, generator=seeded())
    without, same = objective.generator_loss(vae, {"video": clip}, generator=seeded(), adversarial=False)
    torch.testing.assert_close(without.loss, F.l1_loss(decoded, clip))
    torch.testing.assert_close(with_term.loss, out.loss)
    assert "adversarial" not in without.metrics
    assert torch.equal(made, decoded)
    assert torch.equal(same, decoded)
    assert not made.requires_grad
    game = objective.discriminator_loss(clip, decoded)
    real = F.relu(1 - 2 * clip.mean()) + F.relu(1 - 2 * clip.amax())
    fake = F.relu(1 + 2 * decoded.mean()) + F.relu(1 + 2 * decoded.amax())
    torch.testing.assert_close(game.loss, (real + fake) / 4)
    torch.testing.assert_close(game.metrics["logits/real"], clip.mean() + clip.amax())
    torch.testing.assert_close(game.metrics["logits/made"], decoded.mean() + decoded.amax())
    game.loss.backward()
    assert discriminator.scale.grad is not None
    assert all(parameter.grad is None for parameter in vae.parameters())


def test_shipped_discriminator_plays(narrow, video):
    vae, clip = narrow("tiny"), video()
    objective = VAEObjective(
        VAEObjectiveConfig(adversarial_weight=0.1), discriminator=ImageAndVideoDiscriminator(width=4, num_layers=2)
    )
    objective(vae, {"video": clip}).loss.backward()
    assert all(parameter.grad is None for parameter in objective.discriminator.parameters())
    vae.zero_grad()
    # With the graph of the reconstruction still there: the discriminator's loss shall cut it.
    decoded = vae.reconstruct(vae.posterior(clip).sample())
    objective.discriminator_loss(clip, decoded).loss.backward()
    assert all(parameter.grad is not None for parameter in objective.discriminator.parameters())
    assert all(parameter.grad is None for parameter in vae.parameters())


TERMS = {
    "reconstruction": {"kl_weight": 0.0},
    "kl": {"kl_weight": 1.0},
    "perceptual": {"kl_weight": 0.0, "perceptual_weight": 1.0},
    "adversarial": {"kl_weight": 0.0, "adversarial_weight": 1.0},
}


@pytest.mark.parametrize("term", TERMS)
def test_each_term_reaches_the_weights_it_should(narrow, video, term):
    vae, clip = narrow("tiny"), video()
    torch.manual_seed(0)
    networks = {
        "perceptual": {"perceptual": VGGDistance(vgg_weights())},
        "adversarial": {"discriminator": ImageAndVideoDiscriminator(width=4, num_layers=2)},
    }.get(term, {})
    objective = VAEObjective(VAEObjectiveConfig(**TERMS[term]), **networks)

    def gradients(loss):
        values = torch.autograd.grad(loss, list(vae.parameters()), allow_unused=True, materialize_grads=True)
        return dict(zip(dict(vae.named_parameters()), values, strict=True))

    # What the term adds: the gradients of the whole less those of the reconstruction.
    whole = gradients(objective(vae, {"video": clip}, generator=seeded()).loss)
    plain = gradients(VAEObjective(VAEObjectiveConfig(kl_weight=0.0))(vae, {"video": clip}, generator=seeded()).loss)
    added = whole if term == "reconstruction" else {name: whole[name] - plain[name] for name in whole}
    reached = {name.split(".")[0] for name, value in added.items() if value.norm() > 1e-6 * plain[name].norm()}
    assert reached == ({"encoder"} if term == "kl" else {"encoder", "decoder"})
    if term == "kl":
        assert all(torch.equal(whole[name], plain[name]) for name in whole if name.startswith("decoder"))


def test_the_discriminator_learns_the_game(video):
    torch.manual_seed(0)
    objective = VAEObjective(
        VAEObjectiveConfig(adversarial_weight=1.0), discriminator=ImageAndVideoDiscriminator(width=8, num_layers=2)
    )
    optimizer = torch.optim.AdamW(objective.discriminator.parameters(), lr=1e-2, weight_decay=0.0)
    noise = video(5, 16, 16, batch=4)
    smooth = F.interpolate(video(2, 4, 4, batch=4), size=(5, 16, 16), mode="trilinear")
    losses = []
    for _ in range(60):
        loss = objective.discriminator_loss(smooth, noise).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.9
    assert losses[-1] < 0.3


def test_discriminator_shapes(video):
    discriminator = ImageAndVideoDiscriminator(width=4, num_layers=3, frame_step=4)
    image, clip = discriminator(video(9, 32, 24, batch=2))
    assert image.shape == (2 * 3, 1, 1, 4, 3)
    assert clip.shape == (2, 1, 9, 4, 3)
    # A still has no motion to judge.
    (still,) = discriminator(video(1, 32, 24))
    assert still.shape == (1, 1, 1, 4, 3)


def test_discriminator_layers_have_unit_spectral_norm():
    discriminator = PatchDiscriminator(width=6, num_layers=2, temporal_kernel=3)
    for _ in range(40):
        discriminator(torch.randn(1, 3, 3, 16, 16))
    for layer in [*discriminator.layers, discriminator.head]:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2).item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_spectral_norm_holds_while_the_weights_are_driven(precision):
    """Trained for a hundred steps to tell as hard as it can, no layer's matrix grows past 1."""
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(width=6, num_layers=2, temporal_kernel=3)
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=2e-3, weight_decay=0.0)
    layers = [*discriminator.layers, discriminator.head]
    real, made = torch.rand(2, 3, 3, 16, 16), -torch.rand(2, 3, 3, 16, 16)
    raw = [layer.parametrizations.weight.original for layer in layers]
    before = [torch.linalg.matrix_norm(weight.flatten(1), ord=2).item() for weight in raw]
    for _ in range(100):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = discriminator(made).mean() - discriminator(real).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = [torch.linalg.matrix_norm(weight.flatten(1), ord=2).item() for weight in raw]
    # Unbounded, they would have grown.
    assert max(b / a for a, b in zip(before, after, strict=True)) > 1.05
    discriminator.eval()
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2).item() == pytest.approx(1.0, abs=0.02)


def test_spectral_norm_bounds_how_fast_logits_change(video):
    """A patch of k pixels lies in k / stride windows each way: that, and 1 for each matrix, bound the slope."""
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(width=6, num_layers=2, temporal_kernel=1)
    for _ in range(40):
        discriminator(video(1, 16, 16))
    discriminator.eval()
    first = video(1, 16, 16, seed=1)
    # Each pixel lies in 2 x 2 windows of a 4 x 4 kernel of stride 2, and in 3 x 3 of the head.
    bound = math.sqrt(4) ** 2 * math.sqrt(9) * 1.05
    for scale in (1e-3, 1.0):
        second = first + scale * video(1, 16, 16, seed=2)
        change = (discriminator(second) - discriminator(first)).norm() / (second - first).norm()
        assert 0 < change <= bound


def test_image_discriminator_judges_each_frame_alone(video):
    discriminator = PatchDiscriminator(width=4, num_layers=2, temporal_kernel=1).eval()
    clip = video(4, 16, 16)
    torch.testing.assert_close(discriminator(clip)[:, :, 2:3], discriminator(clip[:, :, 2:3]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"temporal_kernel": 2}, "odd"), ({"temporal_kernel": 1, "width": 0}, "width"), ({"temporal_kernel": 0}, "odd")],
)
def test_bad_discriminator_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PatchDiscriminator(**arguments)


def test_discriminator_refuses_small_pictures():
    with pytest.raises(ValueError, match="at least 8"):
        PatchDiscriminator(temporal_kernel=1)(torch.zeros(1, 3, 1, 4, 16))
    with pytest.raises(ValueError, match="frame_step"):
        ImageAndVideoDiscriminator(frame_step=0)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"reconstruction": "l2"}, "reconstruction"),
        ({"charbonnier_epsilon": 0.0}, "charbonnier_epsilon"),
        ({"kl_weight": -1.0}, "kl_weight"),
        ({"discriminator_width": 0}, "discriminator_width"),
        ({"perceptual_frames": 0}, "perceptual_frames"),
    ],
)
def test_bad_objective_config_is_refused(table, message):
    with pytest.raises(ValueError, match=message):
        VAEObjectiveConfig(**table)


def test_terms_and_their_networks_come_together(narrow, video):
    with pytest.raises(ValueError, match="perceptual_weight"):
        VAEObjective(VAEObjectiveConfig(perceptual_weight=1.0))
    with pytest.raises(ValueError, match="adversarial_weight"):
        VAEObjective(discriminator=MeanIntensity())
    with pytest.raises(ValueError, match="discriminator"):
        VAEObjective().discriminator_loss(video(), video())


def test_build_makes_the_networks_that_the_weights_ask_for(tmp_path, narrow, video):
    plain = VAEObjective.build(VAEObjectiveConfig())
    assert (plain.perceptual, plain.discriminator) == (None, None)
    with pytest.warns(UserWarning, match="no perceptual term"):
        off = VAEObjective.build(VAEObjectiveConfig(perceptual_weight=1.0, adversarial_weight=0.1))
    assert off.config.perceptual_weight == 0
    assert isinstance(off.discriminator, ImageAndVideoDiscriminator)
    save_file(vgg_weights(), tmp_path / "vgg16.safetensors")
    config = VAEObjectiveConfig(
        perceptual_weight=0.5, perceptual_frames=2, perceptual_weights=str(tmp_path), kl_weight=0.0
    )
    objective = VAEObjective.build(config)
    assert isinstance(objective.perceptual, VGGDistance)
    vae, clip = narrow("tiny"), video()
    out = objective(vae, {"video": clip}, generator=seeded())
    torch.testing.assert_close(out.loss, out.metrics["reconstruction"] + 0.5 * out.metrics["perceptual"])
    decoded = reconstruct(vae, clip)
    each = torch.stack([objective.perceptual(decoded[:, :, [t]], clip[:, :, [t]]) for t in range(9)])
    pairs = (each[:, None] + each) / 2
    # Two different frames of the nine.
    assert torch.isclose(pairs, out.metrics["perceptual"], rtol=1e-4)[~torch.eye(9, dtype=bool)].any()


def test_disturbed_latents_have_the_spread_asked_for() -> None:
    objective = VAEObjective(VAEObjectiveConfig(latent_noise=0.5))
    latents, deviation = torch.randn(400, 2, 6, 3, 3), torch.tensor([1.0, 3.0])
    noise = objective.disturb(latents, deviation, seeded()) - latents
    # Sizes are |N(0, 0.5^2)| deviations: their mean square is 0.25, and each clip has its own.
    for channel, spread in enumerate(deviation):
        assert noise[:, channel].square().mean().sqrt().item() == pytest.approx(0.5 * spread.item(), rel=0.1)
    sizes = noise[:, 1].flatten(1).std(1)
    assert sizes.mean().item() == pytest.approx(3 * 0.5 * math.sqrt(2 / math.pi), rel=0.1)
    assert sizes.std().item() == pytest.approx(3 * 0.5 * math.sqrt(1 - 2 / math.pi), rel=0.2)
    # Half of the variance stays through a clip.
    still = noise.mean(2).square().mean() / noise.square().mean()
    assert still.item() == pytest.approx(0.5 + 0.5 / 6, abs=0.05)


def test_noise_on_the_latents_reaches_what_is_reconstructed(narrow, video):
    vae, clip = narrow("tiny"), video()
    vae.set_latent_statistics(torch.zeros_like(vae.latents_mean), torch.full_like(vae.latents_std, 2.0))
    clean, noisy = VAEObjectiveConfig(kl_weight=0.0), VAEObjectiveConfig(kl_weight=0.0, latent_noise=0.5)
    generator = seeded()
    latents = VAEObjective(noisy).disturb(vae.posterior(clip).sample(generator), vae.latents_std, generator)
    out = VAEObjective(noisy)(vae, {"video": clip}, generator=seeded())
    torch.testing.assert_close(out.loss, F.l1_loss(vae.reconstruct(latents), clip))
    assert not torch.equal(out.loss, VAEObjective(clean)(vae, {"video": clip}, generator=seeded()).loss)
    with pytest.raises(ValueError, match="latent_noise must not be negative"):
        VAEObjectiveConfig(latent_noise=-0.1)
