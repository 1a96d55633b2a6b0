"""What a data set was encoded with: checked against the model before a stage, and exported with it."""

from __future__ import annotations

import json
import math
import shutil
import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from omnihuman_core.checkpoint import load_safetensors
from omnihuman_core.config import to_toml
from omnihuman_core.contracts.importer import ImportedComponent
from omnihuman_core.importing.components import GENERATION
from omnihuman_core.model_dir import ComponentEntry, ModelIndex, load_model, read_index
from omnihuman_core.plugins import plugin
from omnihuman_train.cli import main
from omnihuman_train.data.shards import INDEX
from omnihuman_train.extractors import check_vae, data_recipe, vae_directory
from omnihuman_train.extractors import extractors as read_extractors
from omnihuman_train.recipes import stage1, stage2
from omnihuman_train.stage_config import StageConfig
from omnihuman_train.stage_run import run_stage

from .data_sets.toy import write_clip
from .stage_toys import TINY, toy, write_encoded

WAV2VEC2 = {
    "path": "./pretrained",
    "layers": [3, 6, 9, 12],
    "loudness": True,
    "quiet_db": -45.0,
    "chunk_seconds": 20.0,
    "context_seconds": 2.0,
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_encoded(tmp_path / "encoded")


def change_recipe(data: Path, **changes: Any) -> None:
    """Other entries in the recipe of a data set; None takes one out."""
    first, *rest = (data / INDEX).read_text().splitlines()
    head = json.loads(first)
    recipe = {**head["recipe"], **changes}
    head["recipe"] = {name: value for name, value in recipe.items() if value is not None}
    (data / INDEX).write_text("\n".join([json.dumps(head), *rest]) + "\n")


def with_files(folder: Path) -> Path:
    """A model directory with an extractor that brings a file."""
    (folder / "audio_extractor" / "pretrained").mkdir(parents=True)
    (folder / "audio_extractor" / "pretrained" / "config.json").write_text("{}")
    config = plugin("feature_extractor", "wav2vec2").config_class(**{**WAV2VEC2, "layers": (3, 6, 9, 12)})
    (folder / "audio_extractor" / "config.toml").write_text(to_toml(config))
    entry = ComponentEntry(
        group="omnihuman.feature_extractor.v1", plugin="wav2vec2", package="omnihuman-conditions", package_version="0"
    )
    index = ModelIndex(
        format=1, name="sound", version="0", generation=GENERATION, components={"audio_extractor": entry}
    )
    (folder / "model.toml").write_text(to_toml(index))
    return folder


def extractors(config: StageConfig) -> list[ImportedComponent]:
    return read_extractors(config, data_recipe(config))


def vae_of(config: StageConfig) -> str:
    return vae_directory(config, data_recipe(config))


def recipe_of(data: Path, **changes: Any) -> StageConfig:
    return toy(stage1.small(), data, None, **changes)


def test_the_documented_path_from_clips_to_a_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from omnihuman_infer.cli import main as infer

    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_clips").mkdir()
    for number in range(2):
        write_clip(tmp_path / "my_clips" / f"{number}.mp4", frames=18, size=(64, 64), beep=0.3)
        (tmp_path / "my_clips" / f"{number}.json").write_text('{"caption": "a grey wall"}')
    pack = ["data", "pack", "--clips", "my_clips", "--out", "data/clips", "--licence", "own", "--assume-sync"]
    assert main([*pack, "--frames", "17", "--area", "64x64"]) == 0
    assert main(["data", "cache", "data/clips", "--out", "data/debug", "--model", str(TINY)]) == 0
    for number in (1, 2, 3):
        recipe = f"omnihuman_train.recipes.stage{number}:debug"
        assert main(["run", "--config", recipe, "--out", f"runs/debug-stage{number}", "--trial", "2"]) == 0
    model = load_model("runs/debug-stage3/model")
    shipped = load_model(TINY)
    for name in ("text_extractor", "audio_extractor", "pose_extractor"):
        mine, theirs = getattr(model, name), getattr(shipped, name)
        assert (type(mine), mine.config) == (type(theirs), theirs.config)
    weights = [
        load_safetensors(Path(folder) / "vae" / "model.safetensors") for folder in ("runs/debug-stage3/model", TINY)
    ]
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())

    from PIL import Image

    Image.new("RGB", (64, 64), (90, 120, 90)).save("p.png")
    with wave.open("v.wav", "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        tone = [int(9000 * math.sin(i / 9)) for i in range(8000)]
        file.writeframes(b"".join(value.to_bytes(2, "little", signed=True) for value in tone))
    made = ["generate", "--model", "runs/debug-stage3/model", "--image", "p.png", "--audio", "v.wav"]
    assert infer([*made, "--prompt", "a wall", "--num-steps", "2", "--out", "o.mp4", "--quiet"]) == 0
    assert (tmp_path / "o.mp4").stat().st_size > 500


def test_data_that_the_encoders_do_not_take_is_refused_before_anything_is_loaded(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError("the model was built")

    monkeypatch.setattr("omnihuman_train.stage_run.start_model", loaded)
    for name in ("audio", "text"):
        right = recipe_of(data)
        theirs = (stage1.small() if name == "audio" else stage1.hunyuan_video()).model
        model = replace(right.model, **{f"{name}_encoder": getattr(theirs, f"{name}_encoder")})
        message = (
            rf"was encoded with --{name} \w+:tiny, which does not fit model.{name}_encoder .*; encode the clips with"
        )
        with pytest.raises(ValueError, match=message):
            run_stage(replace(right, model=model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_data_that_is_not_there_or_not_encoded_is_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data: nowhere does not exist; make it with `omnihuman-train data pack`"):
        run_stage(recipe_of(Path("nowhere")), tmp_path / "out")
    first, rest = (data / INDEX).read_text().split("\n", 1)
    (data / INDEX).write_text(first.replace('"states"', '"clips"', 1) + "\n" + rest)
    with pytest.raises(ValueError, match="holds clips; run `omnihuman-train data cache` first"):
        extractors(recipe_of(data))


def test_an_index_that_tells_no_extractors_needs_a_start_that_has_them(data: Path, tmp_path: Path) -> None:
    change_recipe(data, extractors=None)
    with pytest.raises(ValueError, match="does not say what --audio it was encoded with; encode the clips again"):
        extractors(recipe_of(data))
    held = extractors(toy(stage2.small(), data, TINY))
    assert [(part.component, part.plugin) for part in held] == [
        ("audio_extractor", "log_mel"),
        ("text_extractor", "text_bytes"),
    ]


def test_data_of_other_extractors_than_those_of_the_start_is_refused(data: Path) -> None:
    config = toy(stage2.small(), data, TINY)
    assert len(extractors(config)) == 2
    recipe = json.loads((data / INDEX).read_text().splitlines()[0])["recipe"]["extractors"]
    recipe["audio"]["config"]["num_mels"] = 20
    change_recipe(data, extractors=recipe)
    with pytest.raises(
        ValueError, match=r"--audio log_mel:tiny \(log_mel\), but the audio_extractor of start, .*another"
    ):
        extractors(config)


def test_files_of_an_extractor_go_with_the_model_or_are_missed_before_the_run(data: Path, tmp_path: Path) -> None:
    source = with_files(tmp_path / "sound")
    recipe = json.loads((data / INDEX).read_text().splitlines()[0])["recipe"]["extractors"]
    recipe["audio"] = {"plugin": "wav2vec2", "config": WAV2VEC2}
    change_recipe(data, extractors=recipe, audio=str(source))
    audio, _ = extractors(recipe_of(data))
    assert audio.files == {"pretrained/config.json": source / "audio_extractor" / "pretrained" / "config.json"}
    shutil.rmtree(source)
    with pytest.raises(ValueError, match="whose files go with the model, but it is not there any more; put it back"):
        extractors(recipe_of(data))


def test_the_vae_is_the_one_that_made_the_latents(data: Path, tmp_path: Path) -> None:
    assert vae_of(recipe_of(data)) == str(TINY)
    with pytest.raises(ValueError, match="vae: none is no model directory; set vae to the one that"):
        vae_of(recipe_of(data, vae=None))
    with pytest.raises(ValueError, match="sound holds no VAE"):
        vae_of(recipe_of(data, vae=str(with_files(tmp_path / "sound"))))
    change_recipe(data, vae=str(TINY), vae_bf16_sha256="0" * 64)
    assert vae_of(recipe_of(data, vae=None)) == str(TINY)
    with pytest.raises(ValueError, match="is not the one that made the latents of"):
        check_vae(recipe_of(data), data_recipe(recipe_of(data)), str(TINY))
    assert "vae" in read_index(TINY).components
