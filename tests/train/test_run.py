"""A whole run through the command line, cut short: render, VAE, encode, backbone, model directory."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from omnihuman_core.checkpoint import load_safetensors, save_safetensors
from omnihuman_core.config import from_table, read_toml
from omnihuman_core.contracts import Conditioning, TextFeatures
from omnihuman_core.model_dir import load_model, read_index
from omnihuman_core.testing.fakes import FakeVAE, FakeVAEConfig
from omnihuman_train.cli import main
from omnihuman_train.config import TrainConfig
from omnihuman_train.data.cached import Shards, shard_paths
from omnihuman_train.model import OmniModel
from omnihuman_train.parts import check_encoded_by, load_vae
from omnihuman_train.recipes.debug import debug
from omnihuman_train.runs import shortened

ARGUMENTS = [
    *("run", "--config", "omnihuman_train.recipes.debug:debug", "--trial", "1"),
    *("--set", "clips.clips=[3, 1]", "--set", "run.batch_size=2", "--set", "vae.batch_size=2"),
    *("--set", "decoder.batch_size=2", "--set", "run.optimizer.name=adamw"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "debug"
    assert main([*ARGUMENTS, "--out", str(out)]) == 0
    return out


def trained(out: Path) -> OmniModel:
    """The averaged weights of the last checkpoint."""
    model = OmniModel.from_preset("tiny", probe=True)
    model.load_state_dict(load_safetensors(out / "backbone/checkpoints/step_00000003/ema.safetensors"))
    return model.eval()


def test_every_part_leaves_its_files(finished: Path) -> None:
    assert sorted(path.name for path in finished.iterdir()) == [
        "backbone",
        "clips",
        "config.toml",
        "decoder",
        "latents",
        "model",
        "vae",
    ]
    for part in ("clips", "latents"):
        assert sorted(path.name for path in (finished / part).iterdir() if path.is_dir()) == ["32x32", "48x32"]
    for part, steps in (("vae", 1), ("decoder", 1), ("backbone", 3)):
        rows = [json.loads(row) for row in (finished / part / "metrics.jsonl").read_text().splitlines()]
        assert rows[-1]["step"] == steps
    assert {"loss", "grad_norm", "loss/mouth_probe"} <= set(rows[-1])


def test_the_configuration_beside_a_run_is_the_resolved_one(finished: Path) -> None:
    config = from_table(TrainConfig, read_toml(finished / "config.toml"))
    assert config.clips.clips == (3, 1)
    assert [stage.steps for stage in config.stages] == [1, 1, 1]
    beside = read_toml(finished / "backbone/checkpoints/step_00000003/config.toml")
    assert from_table(TrainConfig, beside) == config


def test_latents_have_mean_zero_and_deviation_one(finished: Path) -> None:
    latents = Shards(shard_paths(finished / "latents" / "32x32")).tensors["latents"].float()
    other = Shards(shard_paths(finished / "latents" / "48x32")).tensors["latents"].float()
    values = torch.cat([latents.movedim(1, -1).flatten(0, -2), other.movedim(1, -1).flatten(0, -2)])
    # The constants were measured in fp32 and the latents come from bf16.
    torch.testing.assert_close(values.mean(0), torch.zeros(16), atol=0.1, rtol=0)
    torch.testing.assert_close(values.std(0), torch.ones(16), atol=0.1, rtol=0)


def test_the_exported_model_is_the_trained_one(finished: Path) -> None:
    index = read_index(finished / "model")
    assert (index.name, index.generation.segment_frames, len(index.components)) == ("debug", 13, 8)
    loaded, model = load_model(finished / "model"), trained(finished)
    for name in ("backbone", "text_encoder", "audio_encoder", "pose_encoder"):
        exported = getattr(loaded, name).state_dict()
        for key, value in getattr(model, name).state_dict().items():
            assert torch.equal(exported[key], value.bfloat16().float()), key
    vae = load_vae(debug(), finished, "decoder")
    assert torch.equal(loaded.vae.latents_mean, vae.latents_mean.bfloat16().float())  # type: ignore[attr-defined]

    torch.manual_seed(0)
    latents, sigma = torch.randn(1, 16, 4, 4, 4), torch.tensor([0.6])
    text = TextFeatures(values=torch.randint(1, 257, (1, 5, 6)), mask=torch.ones(1, 5, dtype=torch.bool))
    audio, maps = torch.randn(1, 13, 1, 160), torch.rand(1, 3, 13, 32, 32)
    outputs = []
    with torch.no_grad():
        for part in (model, loaded):
            condition = Conditioning(
                text=part.text_encoder.encode(text),  # type: ignore[union-attr]
                audio=part.audio_encoder.encode(audio),  # type: ignore[union-attr]
                pose=part.pose_encoder.encode(maps),  # type: ignore[union-attr]
            )
            outputs.append(part.backbone(latents, sigma, condition))
        decoded = [part.decode(latents) for part in (vae, loaded.vae)]
    # Rounding to bf16 moves each weight by at most 2^-9 of itself.
    for mine, exported in (outputs, decoded):
        assert mine.norm() > 0
        assert (mine - exported).norm() < 0.03 * mine.norm()


def test_the_decoder_goes_on_and_the_latents_stay(finished: Path) -> None:
    vae, decoder = load_vae(debug(), finished), load_vae(debug(), finished, "decoder")
    video = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(video)
        assert torch.equal(decoder.encode(video), latents)
        assert not torch.equal(decoder.decode(latents), vae.decode(latents))


def test_the_same_command_again_changes_nothing(finished: Path) -> None:
    def state() -> dict[str, bytes]:
        files = [path for path in finished.rglob("*") if path.is_file()]
        return {str(path.relative_to(finished)): path.read_bytes() for path in files}

    before = state()
    assert main([*ARGUMENTS, "--out", str(finished)]) == 0
    assert state() == before


def test_a_run_without_clips_or_vae_says_what_is_missing(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(part: str) -> str:
        assert main([*ARGUMENTS, "--out", str(tmp_path), "--parts", part]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        return lines[0]

    assert f"{tmp_path / 'clips'}: no size buckets here; render" in fails("vae")
    for part in ("encode", "decoder", "backbone"):
        assert "final.safetensors: not trained yet; run the part 'vae' first" in fails(part)
    assert "final.safetensors: not trained yet; run the part 'backbone' first" in fails("export")
    (tmp_path / "vae").mkdir()
    shutil.copy(finished / "vae" / "final.safetensors", tmp_path / "vae")
    assert "clips: no size buckets" in fails("encode")
    assert "latents: no size buckets" in fails("backbone")
    shutil.copytree(finished / "backbone", tmp_path / "backbone")
    assert "final.safetensors: not trained yet; run the part 'decoder' first" in fails("export")
    weights = load_safetensors(finished / "vae" / "final.safetensors")
    save_safetensors(dict(list(weights.items())[1:]), tmp_path / "vae" / "final.safetensors")
    assert "final.safetensors: of another architecture: Missing key" in fails("encode")


def test_a_broken_shard_stops_with_its_name(tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(finished / "clips", tmp_path / "clips")
    shard = shard_paths(tmp_path / "clips" / "48x32")[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    assert main([*ARGUMENTS, "--out", str(tmp_path), "--parts", "vae"]) == 2
    assert f"{shard}: broken shard" in capsys.readouterr().err


def test_latents_of_another_vae_are_refused(tmp_path: Path) -> None:
    config = FakeVAEConfig()
    vae, other = FakeVAE(config), FakeVAE(config)
    with torch.no_grad():
        other.basis[0, 0] += 1e-3
    check_encoded_by(vae, tmp_path)
    (tmp_path / "8x8").mkdir()
    (tmp_path / "8x8" / "000000-000001.safetensors").write_bytes(b"")
    check_encoded_by(vae, tmp_path)
    with pytest.raises(ValueError, match="encoded by another VAE than the run has now; delete it and encode again"):
        check_encoded_by(other, tmp_path)


def test_shortened_cuts_every_stage_and_keeps_shorter_ones() -> None:
    recipe = debug()
    stages = (replace(recipe.stages[0], steps=1), *recipe.stages[1:])
    recipe = replace(recipe, stages=stages, run=replace(recipe.run, steps=21))
    short = shortened(recipe, 3)
    assert [stage.steps for stage in short.stages] == [1, 3, 3]
    assert (short.run.steps, short.vae.steps) == (7, 3)
    assert [stage.ratios for stage in short.stages] == [stage.ratios for stage in recipe.stages]
