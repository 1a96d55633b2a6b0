"""The flow-matching loss (paper sections 3.1 and 3.3) against closed forms, and what the backbone is given."""

from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from omnihuman_core.contracts import TextFeatures
from omnihuman_core.mmdit.blocks import BlockInputs
from omnihuman_train.config import FlowConfig, SegmentConfig
from omnihuman_train.data.stream import end_of_texts
from omnihuman_train.objective import FlowObjective, by_condition_set, by_sigma_quartile, probe_loss
from omnihuman_train.stages import Ratios, Stage

from .models import Recorder, flow_batches, narrow_mmdit, toy_model

WHOLE = (Stage(name="all", steps=100, ratios=Ratios(text=0.7, audio=0.6, pose=0.5, reference=0.7)),)


def batch_of(latents: Path, *, continuing: bool, step: int = 1, batch_size: int = 16) -> dict[str, Any]:
    segment = SegmentConfig(latent_frames=4, continuing_ratio=float(continuing))
    return flow_batches(latents, batch_size=batch_size, segment=segment, stages=WHOLE)(step)


def x0_of(batch: dict[str, Any]) -> Tensor:
    return batch["latents"][:, :, batch["start"] + batch["motion_latents"] : batch["stop"]]


def level(sigma: Tensor) -> Tensor:
    return sigma.view(-1, 1, 1, 1, 1)


@pytest.mark.parametrize("continuing", [False, True])
def test_the_true_velocity_has_no_loss(latents: Path, continuing: bool) -> None:
    batch = batch_of(latents, continuing=continuing)
    x0 = x0_of(batch)
    # x_s = (1 - s) x0 + s noise gives noise - x0 = (x_s - x0) / s.
    model = toy_model(Recorder(lambda x, sigma: (x - x0) / level(sigma)))
    output = FlowObjective(FlowConfig())(model, batch)
    assert output.loss.item() < 1e-9


@pytest.mark.parametrize(("mouth", "hand"), [(1.0, 1.0), (4.0, 1.0), (1.0, 0.5), (4.0, 2.0)])
def test_no_velocity_has_the_weighted_power_of_the_target(latents: Path, mouth: float, hand: float) -> None:
    batch = batch_of(latents, continuing=True)
    model = toy_model(Recorder(lambda x, sigma: torch.zeros_like(x)))
    output = FlowObjective(FlowConfig(mouth_weight=mouth, hand_weight=hand))(model, batch)
    recorder: Any = model.backbone
    x0 = x0_of(batch)
    noise = (recorder.latents - (1 - level(recorder.sigma)) * x0) / level(recorder.sigma)
    # Noise has unit power and no part in common with the picture.
    assert abs(noise.square().mean() - 1) < 0.05
    frames = slice(batch["start"] + 2, batch["stop"])
    expected = []
    for i in range(len(x0)):
        total = weights = 0.0
        for place in torch.cartesian_prod(*(torch.arange(n) for n in x0.shape[2:])).tolist():
            t, h, w = place
            weight = 1.0
            weight += (mouth - 1) * float(batch["mouth_region"][i, frames][t, h, w])
            weight += (hand - 1) * float(batch["hand_region"][i, frames][t, h, w])
            total += weight * float((noise - x0)[i, :, t, h, w].square().mean())
            weights += weight
        expected.append(total / weights)
    assert output.loss.item() == pytest.approx(sum(expected) / len(expected), rel=1e-4)


@pytest.mark.parametrize(("mean", "std", "shift"), [(0.0, 1.0, 1.0), (0.5, 0.7, 3.0)])
def test_sigma_is_logit_normal_then_shifted(latents: Path, mean: float, std: float, shift: float) -> None:
    model = toy_model(Recorder(lambda x, sigma: x))
    FlowObjective(FlowConfig(sigma_mean=mean, sigma_std=std, sigma_shift=shift))(
        model, batch_of(latents, continuing=False, batch_size=512)
    )
    recorder: Any = model.backbone
    shifted = recorder.sigma.double()
    plain = shifted / (shift - (shift - 1) * shifted)
    assert stats.kstest(torch.logit(plain).numpy(), stats.norm(mean, std).cdf).pvalue > 0.01


@pytest.mark.parametrize("continuing", [False, True])
def test_the_backbone_sees_conditions_where_kept_and_nulls_where_dropped(latents: Path, continuing: bool) -> None:
    batch = batch_of(latents, continuing=continuing)
    model = toy_model(Recorder(lambda x, sigma: x))
    FlowObjective(FlowConfig())(model, batch)
    recorder: Any = model.backbone
    seen, keep, segment = recorder.conditioning, batch["keep"], slice(batch["start"], batch["stop"])
    for name in ("text", "audio", "pose", "reference"):
        assert 0 < int(keep[name].sum()) < len(keep[name]), name

    text = model.text_encoder.encode(TextFeatures(values=batch["text_values"], mask=batch["text_mask"]))
    audio = model.audio_encoder.encode(batch["audio"].float())
    for part, null, mine, kept in (
        (seen.text.tokens, model.text_encoder.null(text).tokens, text.tokens, keep["text"]),
        (seen.text.mask, model.text_encoder.null(text).mask, text.mask, keep["text"]),
        (
            seen.audio.tokens,
            model.audio_encoder.null(audio).tokens[:, segment],
            audio.tokens[:, segment],
            keep["audio"],
        ),
        (seen.reference.latents, torch.zeros_like(batch["reference"]), batch["reference"].float(), keep["reference"]),
    ):
        assert torch.equal(part[kept], mine[kept])
        assert torch.equal(part[~kept], null[~kept])

    if continuing:
        motion = batch["latents"][:, :, batch["start"] : batch["start"] + 2]
        assert torch.equal(seen.motion.latents, motion)
        assert recorder.latents.shape[2] == 2
    else:
        assert seen.motion is None
        assert recorder.latents.shape[2] == 4


def test_a_kept_pose_is_that_of_its_own_sample(latents: Path) -> None:
    batch = batch_of(latents, continuing=True)
    model = toy_model(Recorder(lambda x, sigma: x))
    FlowObjective(FlowConfig())(model, batch)
    recorder: Any = model.backbone
    features = recorder.conditioning.pose.features
    kept = batch["keep"]["pose"].nonzero()[:, 0].tolist()
    assert len(kept) > 1
    for row in range(len(features)):
        if row in kept:
            own = model.pose_encoder.encode(batch["pose_maps"][kept.index(row)][None])
            torch.testing.assert_close(features[row], own.features[0, :, batch["start"] : batch["stop"]])
        else:
            null = model.pose_encoder.null_feature.view(-1, 1, 1, 1).expand_as(features[row])
            assert torch.equal(features[row], null)


def test_gradients_reach_every_encoder_and_their_nulls(latents: Path) -> None:
    model = toy_model()
    FlowObjective(FlowConfig())(model, batch_of(latents, continuing=True)).loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_metrics_by_condition_set_and_by_sigma_add_up(latents: Path) -> None:
    model = toy_model(Recorder(lambda x, sigma: torch.zeros_like(x)))
    batch = batch_of(latents, continuing=False, batch_size=64)
    output = FlowObjective(FlowConfig())(model, batch)
    quartiles = {name: value for name, value in output.metrics.items() if name.startswith("loss/sigma")}
    sets = {name: value for name, value in output.metrics.items() if name not in quartiles}
    assert set(quartiles) == {"loss/sigma0", "loss/sigma1", "loss/sigma2", "loss/sigma3"}
    assert {"loss/none", "loss/text", "loss/text+audio", "loss/text+audio+pose", "loss/audio"} <= set(sets)
    for group in (quartiles, sets):
        values = torch.cat(list(group.values()))
        assert len(values) == 64
        assert values.mean().item() == pytest.approx(output.loss.item(), rel=1e-5)
        assert not values.requires_grad


def test_metrics_name_the_right_samples() -> None:
    loss = torch.tensor([1.0, 2.0, 3.0, 4.0])
    keep = {
        "text": torch.tensor([True, True, False, False]),
        "audio": torch.tensor([False, True, False, False]),
        "pose": torch.tensor([False, True, True, False]),
        "reference": torch.tensor([False, True, False, True]),
    }
    sets = {name: value.tolist() for name, value in by_condition_set(loss, keep).items()}
    assert sets == {"loss/text": [1.0], "loss/text+audio+pose": [2.0], "loss/pose": [3.0], "loss/none": [4.0]}
    by_sigma = by_sigma_quartile(loss, torch.tensor([0.0, 0.26, 1.0, 0.24]))
    assert {name: value.tolist() for name, value in by_sigma.items()} == {
        "loss/sigma0": [1.0, 4.0],
        "loss/sigma1": [2.0],
        "loss/sigma3": [3.0],
    }


def test_a_samples_draws_do_not_depend_on_its_batch(latents: Path) -> None:
    model = toy_model(Recorder(lambda x, sigma: x))
    recorder: Any = model.backbone
    batch = batch_of(latents, continuing=False)
    FlowObjective(FlowConfig())(model, batch)
    whole, sigma = recorder.latents, recorder.sigma
    size = len(sigma)
    part = {k: v[2:] if isinstance(v, Tensor) and len(v) == size else v for k, v in batch.items()}
    part |= {"keep": {k: v[2:] for k, v in batch["keep"].items()}, "pose_maps": None}
    part["keep"]["pose"][:] = False
    FlowObjective(FlowConfig())(model, part)
    assert torch.equal(recorder.latents, whole[2:])
    assert torch.equal(recorder.sigma, sigma[2:])
    assert len(sigma.unique()) == size


def test_probe_reads_own_voices_alone(latents: Path) -> None:
    model, batch = toy_model(probe=True), batch_of(latents, continuing=False)
    own = batch["has_audio"]
    assert 0 < int(own.sum()) < len(own)
    loss = probe_loss(model, batch)
    read = model.mouth_probe(model.audio_encoder.projection(batch["audio"].float().flatten(2)))[..., 0]  # type: ignore[misc]
    error = (read - batch["mouth_open"]).square().mean(1)
    assert loss.item() == pytest.approx(error[own].sum().item() / len(own), rel=1e-5)
    halves = [
        probe_loss(model, {key: batch[key][rows] for key in ("audio", "mouth_open", "has_audio")})
        for rows in (slice(len(own) // 2), slice(len(own) // 2, None))
    ]
    assert loss.item() == pytest.approx((halves[0] + halves[1]).item() / 2, rel=1e-5)
    foreign = {**batch, "mouth_open": torch.where(own[:, None], batch["mouth_open"], torch.tensor(9.0))}
    assert torch.equal(probe_loss(model, foreign), loss)
    wrong = {**batch, "mouth_open": torch.where(own[:, None], torch.tensor(9.0), batch["mouth_open"])}
    assert probe_loss(model, wrong) > loss
    assert probe_loss(model, {**batch, "has_audio": torch.zeros_like(own)}).item() == 0


def test_probe_is_added_with_its_weight_and_trains_the_audio_encoder(latents: Path) -> None:
    batch = batch_of(latents, continuing=False)
    losses = []
    for weight in (0.5, 2.0):
        model = toy_model(Recorder(lambda x, sigma: torch.zeros_like(x)), probe=True)
        torch.nn.init.ones_(model.mouth_probe.weight)  # type: ignore[union-attr, arg-type]
        output = FlowObjective(FlowConfig(mouth_probe_weight=weight))(model, batch)
        losses.append(output.loss.item() - weight * output.metrics["loss/mouth_probe"].item())
        output.loss.backward()  # type: ignore[no-untyped-call]
        assert model.audio_encoder.projection.weight.grad.abs().sum() > 0
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("name", ["sigma_std", "sigma_shift", "mouth_weight", "hand_weight"])
def test_weights_and_levels_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match=rf"flow\.{name} must be positive"):
        FlowConfig(**{name: 0.0})


@pytest.mark.parametrize("lengths", [(3, 3, 3, 3), (1, 3, 2, 3)])
def test_texts_that_end_with_the_longest_give_the_same_loss(latents: Path, lengths: tuple[int, ...]) -> None:
    model = toy_model(narrow_mmdit())
    # The gates of a fresh model are zero: no text would reach the picture.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    batch = batch_of(latents, continuing=False, batch_size=4)
    batch["keep"]["text"] = torch.ones(4, dtype=torch.bool)
    batch["text_mask"] = torch.arange(batch["text_mask"].shape[1]) < torch.tensor(lengths)[:, None]
    objective, losses, grads = FlowObjective(FlowConfig()), [], []
    attended = []
    model.backbone.double_blocks[0].register_forward_pre_hook(lambda _, args: attended.append(args))
    for change in ({}, end_of_texts(batch["text_mask"])):
        model.zero_grad()
        loss = objective(model, {**batch, **change}).loss
        loss.backward()
        losses.append(loss.detach())
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    masks = [next(x.mask for x in args if isinstance(x, BlockInputs)) for args in attended]
    assert masks[0] is not None
    assert (masks[1] is None) == (len(set(lengths)) == 1)
    assert [args[1].shape[1] for args in attended] == [4, 3]
    torch.testing.assert_close(losses[1], losses[0])
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-4, atol=1e-6, msg=name)
