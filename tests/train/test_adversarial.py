"""The VAE against its discriminator: who learns from what, exact resume of both players, pictures among clips."""

import json
import math
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from omnihuman_core.checkpoint import load_safetensors
from omnihuman_core.config import from_table, read_toml, to_toml
from omnihuman_train.adversarial import DiscriminatorConfig, Players, adversarial_step, fit_adversarial
from omnihuman_train.cli import main
from omnihuman_train.config import OptimizerConfig, ParallelConfig, RunConfig
from omnihuman_train.data.batches import VideoBatches
from omnihuman_train.data.clips import render_clips
from omnihuman_train.distributed.mesh import World
from omnihuman_train.model import build
from omnihuman_train.recipes.vae import base, natural, small
from omnihuman_train.vae_config import VAETrainConfig, check
from omnihuman_train.vae_run import build_objective, run_vae
from omnihuman_vae import CausalVideoVAE, presets

RECIPE = replace(small(), run=replace(small().run, steps=6, log_every=1, checkpoint_minutes=0.0))
ALONE = World(device=torch.device("cpu"))
GAME = DiscriminatorConfig(start=1, adversarial_start=3, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=0))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae") / "clips"
    assert RECIPE.clips is not None
    render_clips(RECIPE.clips, folder, progress=lambda count: None)
    return folder


def players(seed: int = 0, **loss: Any) -> tuple[Any, Any]:
    torch.manual_seed(seed)
    config = replace(RECIPE, loss=replace(RECIPE.loss, perceptual_weight=0.0, **loss))
    vae = CausalVideoVAE(replace(presets.tiny(), channels=(16, 24), decoder_blocks=(2, 1)))
    # Layers that start at zero would keep the ones before them from learning in the first step.
    for module in vae.modules():
        if isinstance(module, nn.Conv3d) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.05)
    return vae, build_objective(config)


def batches(clips: Path, run: RunConfig = RECIPE.run, *, image_ratio: float = 0.5) -> VideoBatches:
    return VideoBatches(clips, run, frames=5, mouth_weight=3.0, image_ratio=image_ratio)


def train(out: Path, clips: Path, run: RunConfig, *, power_cut: int | None = None, seed: int = 0) -> Any:
    made = batches(clips, run)

    def supply(step: int) -> Any:
        if step == power_cut:
            raise ConnectionError("power cut")
        return made(step)

    vae, objective = players(seed)
    return fit_adversarial(vae, objective, supply, run, GAME, out, resolved="", title="toy")


def rows(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.mark.parametrize(("precision", "cut"), [("fp32", 2), ("fp32", 4), ("bf16", 4)])
def test_a_resumed_game_equals_one_that_never_stopped(tmp_path: Path, clips: Path, precision: Any, cut: int) -> None:
    run = replace(RECIPE.run, precision=precision, steps=5)
    train(tmp_path / "whole", clips, run)
    with pytest.raises(ConnectionError):
        train(tmp_path / "parts", clips, run, power_cut=cut)
    # The next process starts from other weights, singular vectors and random numbers.
    train(tmp_path / "parts", clips, run, seed=7)
    for file in ("model", "ema", "optimizer"):
        first, second = (
            load_safetensors(tmp_path / part / "checkpoints" / "step_00000005" / f"{file}.safetensors")
            for part in ("whole", "parts")
        )
        assert first.keys() == second.keys()
        assert all(torch.equal(second[key], value) for key, value in first.items()), file
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    saved = load_safetensors(tmp_path / "whole" / "checkpoints" / "step_00000005" / "model.safetensors")
    assert {key.split(".")[0] for key in saved} == {"model", "discriminator"}
    assert any(key.endswith("weight.0._u") for key in saved)


def test_each_player_joins_at_its_step(tmp_path: Path, clips: Path) -> None:
    run = replace(RECIPE.run, steps=5)
    train(tmp_path, clips, run)
    seen = rows(tmp_path)
    assert [("discriminator" in row, "adversarial" in row) for row in seen] == [
        (False, False),
        (True, False),
        (True, False),
        (True, True),
        (True, True),
    ]
    assert all("grad_norm" in row and "reconstruction" in row for row in seen)


def moved(module: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


@pytest.mark.parametrize("step", [0, 1, 3])
def test_a_step_moves_the_players_whose_turn_it_is(clips: Path, step: int) -> None:
    vae, objective = players()
    pair = Players(vae, RECIPE.run.optimizer, objective.discriminator, GAME.optimizer)
    before, opponent = weights(vae), weights(objective.discriminator)
    batch = batches(clips, image_ratio=0.0)(0)
    adversarial_step(vae, objective, batch, pair, RECIPE.run, GAME, step, ALONE)
    assert moved(vae, before) == set(before)
    assert bool(moved(objective.discriminator, opponent)) == (step >= GAME.start)
    # Nothing is left over for the next step.
    assert all(p.grad is None for p in [*vae.parameters(), *objective.discriminator.parameters()])


def test_the_discriminator_learns_with_its_own_optimiser(clips: Path) -> None:
    def moves(lr: float) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        vae, objective = players()
        game = replace(GAME, optimizer=replace(GAME.optimizer, lr=lr))
        pair = Players(vae, RECIPE.run.optimizer, objective.discriminator, game.optimizer)
        torch.manual_seed(0)
        adversarial_step(vae, objective, batches(clips)(0), pair, RECIPE.run, game, 3, ALONE)
        return weights(vae), weights(objective.discriminator)

    (vae, slow), (same, fast) = moves(1e-3), moves(1e-1)
    assert all(torch.equal(vae[name], same[name]) for name in vae)
    assert any(not torch.equal(slow[name], fast[name]) for name in slow)


def test_a_few_clips_are_learnt_while_the_discriminator_plays(tmp_path: Path, clips: Path) -> None:
    run = RunConfig(
        steps=80,
        batch_size=2,
        precision="fp32",
        log_every=10,
        ema_decay=0.5,
        optimizer=OptimizerConfig(lr=1e-2, warmup_steps=5, decay_fraction=0.5),
    )
    whole = batches(clips, run, image_ratio=0.0)
    vae, objective = players()
    game = replace(GAME, start=0, adversarial_start=0)
    # Four windows of clips and their first pictures, over and over.
    data = [whole(step) for step in range(2)]
    data += [{key: value[:, :, :1] for key, value in batch.items()} for batch in data]
    fit_adversarial(vae, objective, lambda step: data[step % 4], run, game, tmp_path, resolved="", title="toy")
    seen = rows(tmp_path)
    assert seen[-1]["reconstruction"] < 0.6 * seen[0]["reconstruction"]
    assert all("adversarial" in row and "discriminator" in row for row in seen)


def test_the_opponent_learns_to_tell_where_the_vae_stands_still(tmp_path: Path, clips: Path) -> None:
    still = OptimizerConfig(lr=1e-12, weight_decay=0.0)
    run = RunConfig(steps=40, batch_size=2, precision="fp32", log_every=10, optimizer=still)
    data = batches(clips, run, image_ratio=0.0)(0)
    vae, objective = players()
    game = replace(GAME, start=0, adversarial_start=0, optimizer=replace(GAME.optimizer, lr=1e-2))
    fit_adversarial(vae, objective, lambda step: data, run, game, tmp_path, resolved="", title="toy")
    seen = rows(tmp_path)
    # 1 is the loss of an opponent that knows nothing.
    assert seen[-1]["discriminator"] < 0.8
    assert seen[-1]["logits/real"] > seen[-1]["logits/made"] + 0.3


def test_without_an_adversarial_weight_there_is_no_opponent(tmp_path: Path, clips: Path) -> None:
    vae, objective = players(adversarial_weight=0.0)
    assert objective.discriminator is None
    run = replace(RECIPE.run, steps=2)
    fit_adversarial(vae, objective, batches(clips, run), run, GAME, tmp_path, resolved="", title="toy")
    assert not any("discriminator" in row for row in rows(tmp_path))


@pytest.mark.parametrize("who", ["generator_loss", "discriminator_loss"])
def test_a_loss_that_is_no_number_stops_with_its_step(tmp_path: Path, clips: Path, who: str) -> None:
    vae, objective = players()
    honest = getattr(objective, who)

    def broken(*arguments: Any, **named: Any) -> Any:
        result = honest(*arguments, **named)
        output, rest = (result, None) if who == "discriminator_loss" else result
        output = replace(output, loss=output.loss * math.nan)
        return output if rest is None else (output, rest)

    setattr(objective, who, broken)
    with pytest.raises(FloatingPointError, match=r"step \d: the loss is nan"):
        fit_adversarial(vae, objective, batches(clips), RECIPE.run, GAME, tmp_path, resolved="", title="toy")


@pytest.mark.parametrize(
    ("who", "message"),
    [
        ("generator_loss", "step 3: the norm of the gradient is nan"),
        ("discriminator_loss", "step 3: the norm of the discriminator's gradient is nan"),
    ],
)
def test_a_gradient_that_is_no_number_leaves_both_players_as_they_were(clips: Path, who: str, message: str) -> None:
    vae, objective = players()
    honest = getattr(objective, who)

    def broken(*arguments: Any, **named: Any) -> Any:
        result = honest(*arguments, **named)
        output, rest = (result, None) if who == "discriminator_loss" else result
        # Zero, with an infinite slope.
        output = replace(output, loss=output.loss + (output.loss * 0).sqrt())
        return output if rest is None else (output, rest)

    setattr(objective, who, broken)
    pair = Players(vae, RECIPE.run.optimizer, objective.discriminator, GAME.optimizer)
    before, opponent = weights(vae), weights(objective.discriminator)
    with pytest.raises(FloatingPointError, match=message):
        adversarial_step(vae, objective, batches(clips)(0), pair, RECIPE.run, GAME, 3, ALONE)
    assert not moved(vae, before)
    assert not moved(objective.discriminator, opponent)


def test_pictures_come_at_their_ratio_and_hold_as_many_frames(clips: Path) -> None:
    made = batches(clips, image_ratio=0.3)
    shapes = [tuple(made(step)["video"].shape) for step in range(200)]
    assert {shape[3:] for shape in shapes} == {(32, 32), (48, 32)}
    assert {(shape[0], shape[2]) for shape in shapes} == {(10, 1), (2, 5)}
    pictures = sum(shape[2] == 1 for shape in shapes) / len(shapes)
    # Three standard deviations of a binomial draw.
    assert abs(pictures - 0.3) < 3 * math.sqrt(0.3 * 0.7 / 200)
    # Pictures come from anywhere in a clip.
    first = made._data.buckets[0].tensors["video"][:, :, :1]
    batch = next(b for b in map(made, range(200)) if b["video"].shape[2] == 1 and b["video"].shape[3:] == (32, 32))
    at_start = [any(torch.equal(((p + 1) * 127.5).round().byte(), f) for f in first) for p in batch["video"]]
    assert not all(at_start)


def test_no_pictures_means_the_draws_of_before(clips: Path) -> None:
    plain = VideoBatches(clips, RECIPE.run, frames=5, mouth_weight=3.0)
    for step in range(3):
        assert torch.equal(plain(step)["video"], batches(clips, image_ratio=0.0)(step)["video"])


def test_the_recipe_runs_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", "--config", "omnihuman_train.recipes.vae:small", "--out", str(tmp_path), "--trial", "2"]
    command += ["--set", "clips.clips=[2, 1]"]
    with pytest.warns(UserWarning, match="no perceptual term"):
        assert main(command) == 0
    config = from_table(VAETrainConfig, read_toml(tmp_path / "config.toml"))
    assert config.clips is not None
    assert (config.run.steps, config.clips.clips, config.discriminator.start) == (2, (2, 1), 0)
    vae = build("video_vae", "causal", "tiny")
    vae.load_state_dict(load_safetensors(tmp_path / "vae" / "final.safetensors"))
    assert (vae.latents_std != 1).all()
    assert read_toml(tmp_path / "vae" / "config.toml")["latent_channels"] == 16
    assert main([*command, "--parts", "encode"]) == 2
    assert "--parts: unknown ['encode']; known are ['render', 'vae']" in capsys.readouterr().err
    assert main([*command, "--set", "loss.perceptual_weights=nowhere", "--parts", "vae"]) == 2
    assert "nowhere: no *.safetensors here" in capsys.readouterr().err


def test_recipes_are_whole_and_survive_toml() -> None:
    for recipe in (base(), small()):
        check(recipe)
        assert from_table(VAETrainConfig, tomllib.loads(to_toml(recipe))) == recipe
    assert from_table(VAETrainConfig, tomllib.loads(to_toml(natural()))) == natural()
    assert base().preset == natural().preset == "base"
    assert 0 < base().discriminator.start < base().discriminator.adversarial_start < base().run.steps


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 6}, "frames is 6; the next length that the VAE takes is 9"),
        ({"frames": 13}, "longer than clips.num_frames, 9"),
        ({"preset": "huge"}, "preset 'huge'"),
        ({"loss": replace(small().loss, reconstruction="l2")}, "loss.reconstruction"),
        ({"loss": replace(small().loss, adversarial_weight=-1.0)}, "adversarial_weight"),
    ],
)
def test_bad_runs_are_refused_before_any_work(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_vae(replace(small(), **change), tmp_path)
    assert not list(tmp_path.iterdir())


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="image_ratio"):
        replace(small(), image_ratio=1.5)
    with pytest.raises(ValueError, match="mouth_weight"):
        replace(small(), mouth_weight=0.0)
    with pytest.raises(ValueError, match=r"discriminator\.start"):
        DiscriminatorConfig(start=5, adversarial_start=4, optimizer=OptimizerConfig())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accumulate": 2}, r"run\.accumulate is 2, .* set it to 1"),
        ({"parallel": ParallelConfig(sequence=2)}, r"run\.parallel\.sequence is 2, .* leave it out"),
        ({"parallel": ParallelConfig(dp_shard=2)}, r"run\.parallel\.dp_shard is 2, .* leave it out"),
    ],
)
def test_parts_and_shared_weights_are_refused(
    tmp_path: Path, clips: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(tmp_path, clips, replace(RECIPE.run, **change))
    assert not list(tmp_path.iterdir())
