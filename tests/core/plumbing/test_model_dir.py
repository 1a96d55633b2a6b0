"""Model directories: saved whole, loaded by plugin name, refused with one clear line."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from omnihuman_core import model_dir
from omnihuman_core.importing import read_model_dir, write_components
from omnihuman_core.model_dir import (
    GenerationSettings,
    ModelDirError,
    load_component,
    load_model,
    read_index,
    save_model,
)
from omnihuman_core.testing.fake_encoders import (
    FAKE_PLUGINS,
    FakeAudioEncoder,
    FakeAudioEncoderConfig,
    FakeAudioExtractor,
    FakeAudioExtractorConfig,
)
from omnihuman_core.testing.fakes import FakeBackbone, FakeBackboneConfig, FakeVAE, FakeVAEConfig
from omnihuman_core.testing.numerics import randomize
from omnihuman_core.testing.registration import write_distribution

GENERATION = GenerationSettings(
    segment_frames=17,
    area=64 * 64,
    max_aspect=2.0,
    size_multiple=16,
    num_steps=4,
    guidance_scale=6.5,
    guidance_schedule="constant",
    guidance_end_scale=1.0,
    sigma_shift=1.0,
    sampler="euler",
)


@pytest.fixture(autouse=True, params=["small", "large"])
def fakes_installed(request, tmp_path, monkeypatch):
    # Every test runs on both ways of building a component: in memory, and on meta.
    monkeypatch.setattr(model_dir.load, "_SMALL", 2**40 if request.param == "small" else 0)
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(write_distribution(site, FAKE_PLUGINS, version="1.2.3"))


def components() -> dict[str, tuple[str, Any]]:
    return {
        "vae": ("fake", FakeVAE(FakeVAEConfig())),
        "backbone": ("fake", randomize(FakeBackbone(FakeBackboneConfig()))),
        "audio_extractor": ("fake_audio", FakeAudioExtractor(FakeAudioExtractorConfig(rate=25))),
        "audio_encoder": ("fake_audio", randomize(FakeAudioEncoder(FakeAudioEncoderConfig()))),
    }


def save(directory: Path, **changes: Any) -> Path:
    arguments: dict[str, Any] = {"name": "m", "version": "1", "generation": GENERATION, "components": components()}
    save_model(directory, **(arguments | changes))
    return directory


@pytest.fixture
def directory(tmp_path) -> Path:
    return save(tmp_path / "model")


def test_what_is_saved_is_loaded(directory):
    model = load_model(directory)
    assert model.generation == GENERATION
    assert (model.index.name, model.index.version) == ("m", "1")
    entry = model.index.components["vae"]
    assert (entry.group, entry.plugin) == ("omnihuman.video_vae.v1", "fake")
    assert (entry.package, entry.package_version) == ("omnihuman-fakes", "1.2.3")
    assert model.text_encoder is None
    assert model.audio_extractor.config.rate == 25
    for name, (_, module) in components().items():
        loaded = getattr(model, name)
        assert loaded.config == module.config
        if isinstance(module, nn.Module):
            assert not loaded.training
            for key, value in module.state_dict().items():
                # Weights went through bf16.
                assert torch.equal(loaded.state_dict()[key], value.bfloat16().float())


def test_layout(directory):
    files = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    weights = {f"{name}/model.safetensors" for name in ("vae", "backbone", "audio_encoder")}
    assert files == {"model.toml", *(f"{name}/config.toml" for name in components()), *weights}


def test_dtype(directory):
    model = load_model(directory, dtype=torch.float64)
    assert model.vae.basis.dtype == torch.float64


def test_loading_leaves_the_global_generator_as_it_was(directory):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    load_model(directory)
    load_component(directory, "audio_encoder")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_backbone_gets_its_ops(directory):
    from omnihuman_core.plugins import resolve_ops

    assert load_model(directory).backbone.ops == resolve_ops("eager")
    with pytest.raises(ValueError, match="unknown ops plugin 'turbo'; installed are"):
        load_model(directory, ops="turbo")


def test_one_component_alone(tmp_path):
    directory = save(tmp_path / "part", components={"vae": components()["vae"]})
    assert isinstance(load_component(directory, "vae"), FakeVAE)
    with pytest.raises(ModelDirError, match="components.backbone is missing"):
        load_component(directory, "backbone")
    with pytest.raises(ModelDirError, match="components.backbone is missing; a model needs it"):
        load_model(directory)


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    size: int


class Table(nn.Module):
    """Holds a table that is computed, not stored, both as a buffer and as a plain attribute."""

    config_class = TableConfig

    def __init__(self, config: TableConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.zeros(config.size))
        self.register_buffer("squares", torch.arange(config.size) ** 2, persistent=False)
        self.cubes = torch.arange(config.size) ** 3

    def encode(self, features: Any) -> Any:
        return features

    def null(self, like: Any) -> Any:
        return like


def test_tables_computed_at_construction_survive(tmp_path, monkeypatch):
    monkeypatch.setattr("omnihuman_core.testing.fakes.Table", Table, raising=False)
    entries = {"condition_encoder": {"table": "omnihuman_core.testing.fakes:Table"}}
    monkeypatch.syspath_prepend(write_distribution(tmp_path / "tables", entries, name="tables"))
    directory = save(tmp_path / "m", components={"text_encoder": ("table", Table(TableConfig(size=4)))})
    loaded = load_component(directory, "text_encoder")
    assert loaded.squares.tolist() == [0, 1, 4, 9]
    assert loaded.cubes.tolist() == [0, 1, 8, 27]


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


FAULTS = [
    ("model.toml", "format = 1", "format = 2", "format must be 1, got 2"),
    ("model.toml", "format = 1\n", "", "format must be 1, got None"),
    ("model.toml", "video_vae.v1", "video_vae.v2", "components.vae.group 'omnihuman.video_vae.v2' is version 2"),
    ("model.toml", "video_vae.v1", "backbone.v1", "components.vae.group must be 'omnihuman.video_vae.v1'"),
    (
        "model.toml",
        'plugin = "fake"',
        'plugin = "lost"',
        "plugin 'lost' is not installed .it came with omnihuman-fakes 1.2.3",
    ),
    ("model.toml", "[components.vae]", "[components.eyes]", "unknown component 'eyes'; known are vae, backbone"),
    ("model.toml", "[components.vae]", '[components."../vae"]', "unknown component '../vae'"),
    ("model.toml", "num_steps = 4", "num_steps = -4", "generation.num_steps must be positive and finite, got -4"),
    ("model.toml", "num_steps = 4", 'num_steps = "4"', "generation.num_steps: must be int, got '4'"),
    ("model.toml", "num_steps = 4", "num_step = 4", "generation: unknown key 'num_step'"),
    (
        "vae/config.toml",
        "channels = 24",
        "channels = 23",
        r"vae/model.safetensors: does not fit FakeVAE: basis has shape",
    ),
    ("vae/config.toml", "channels = 24", "chanels = 24", "vae/config.toml: FakeVAEConfig: unknown key 'chanels'"),
    (
        "vae/config.toml",
        "channels = 24",
        "channels = 99",
        r"vae/config.toml: FakeVAEConfig.channels must be in \[1, 24\]",
    ),
    ("vae/config.toml", "channels = 24", "channels =", "vae/config.toml: not a TOML file"),
]


@pytest.mark.parametrize(("file", "old", "new", "message"), FAULTS, ids=[fault[2] or "no format" for fault in FAULTS])
def test_one_line_for_each_mistake(directory, file, old, new, message):
    edit(directory / file, old, new)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(directory)
    assert len(str(caught.value).splitlines()) == 1
    assert str(directory) in str(caught.value)


@pytest.mark.parametrize("lost", ["model.toml", "vae/config.toml", "vae/model.safetensors"])
def test_missing_files(directory, lost):
    (directory / lost).unlink()
    with pytest.raises(ValueError, match=f"{lost}: .*(missing|no such)"):
        load_model(directory)


def test_a_plugin_of_another_kind_of_extractor_is_refused(directory):
    edit(directory / "model.toml", 'plugin = "fake_audio"', 'plugin = "fake_text"')
    with pytest.raises(ModelDirError) as caught:
        load_component(directory, "audio_extractor")
    assert str(caught.value) == (
        f"{directory}/audio_extractor/config.toml: plugin 'fake_text' makes FakeTextExtractor, which has no align() as "
        "the contract AudioExtractor asks; use another plugin"
    )


@pytest.mark.parametrize(
    ("change", "lacks"),
    [
        ("align = None", r"has no align\(\)"),
        ("del config_class", "has no config_class"),
        ("plugin = 5", "5, which has no"),
    ],
)
def test_a_plugin_that_is_no_extractor_at_all(directory, tmp_path, monkeypatch, change, lacks):
    body = "class plugin:\n    config_class = object\n    def extract(self, raw): ...\n    def align(self): ...\n    "
    (tmp_path / "half_a_plugin.py").write_text(f"{body}{change}\n" if "plugin" not in change else f"{change}\n")
    entries = {"feature_extractor": {"half": "half_a_plugin:plugin"}}
    monkeypatch.syspath_prepend(write_distribution(tmp_path, entries, name="half"))
    monkeypatch.delitem(sys.modules, "half_a_plugin", raising=False)
    index = directory / "model.toml"
    index.write_text(
        index.read_text().replace(
            'feature_extractor.v1"\nplugin = "fake_audio"', 'feature_extractor.v1"\nplugin = "half"'
        )
    )
    with pytest.raises(ModelDirError, match=lacks):
        load_model(directory)


def test_a_plugin_upgraded_past_the_contract_is_named(directory, tmp_path, monkeypatch):
    folder = write_distribution(tmp_path / "newer", {"video_vae": {"fake_two": "somewhere:VAE"}}, name="newer")
    (entries,) = folder.glob("*.dist-info/entry_points.txt")
    entries.write_text(entries.read_text().replace("video_vae.v1", "video_vae.v2"))
    monkeypatch.syspath_prepend(folder)
    index = directory / "model.toml"
    index.write_text(index.read_text().replace('video_vae.v1"\nplugin = "fake"', 'video_vae.v1"\nplugin = "fake_two"'))
    with pytest.raises(
        ModelDirError, match=r"'fake_two' is not installed .*; 'fake_two' is registered for version 2 of"
    ):
        read_index(directory)


def test_a_config_of_another_release_is_said_to_be_one(directory):
    index, config = directory / "model.toml", directory / "vae" / "config.toml"
    config.write_text(config.read_text() + "depth = 3\n")
    with pytest.raises(ModelDirError, match=r"unknown key 'depth'; known keys are [a-z_, ]+$"):
        load_model(directory)
    index.write_text(index.read_text().replace('package_version = "1.2.3"', 'package_version = "1.9.0"', 1))
    with pytest.raises(ModelDirError, match=r"written by omnihuman-fakes 1.9.0, installed is omnihuman-fakes 1.2.3"):
        load_model(directory)


def test_missing_component_folder_is_found_before_any_weight_is_read(directory, monkeypatch):
    for file in (directory / "audio_encoder").iterdir():
        file.unlink()
    (directory / "audio_encoder").rmdir()
    monkeypatch.setattr(model_dir.load, "load_state", None)
    with pytest.raises(ModelDirError, match="audio_encoder/config.toml: missing from the model directory"):
        load_model(directory)


def test_no_directory(tmp_path):
    with pytest.raises(ModelDirError, match="nowhere: no such model directory"):
        read_index(tmp_path / "nowhere")


def test_truncated_weights(directory):
    weights = directory / "backbone" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    with pytest.raises(ValueError, match="backbone/model.safetensors: truncated"):
        load_model(directory)


def test_files_may_be_links_as_in_the_cache_of_downloads(directory, tmp_path):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(path for path in directory.rglob("*") if path.is_file())):
        os.replace(file, blobs / str(number))
        file.symlink_to(os.path.relpath(blobs / str(number), file.parent))
    loaded = load_model(directory)
    for name, (_, module) in components().items():
        assert getattr(loaded, name).config == module.config


@pytest.mark.parametrize("file", ["model.toml", "vae/config.toml", "vae/model.safetensors"])
def test_a_link_to_nothing_is_named(directory, tmp_path, file):
    (directory / file).unlink()
    (directory / file).symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match=file):
        load_model(directory)


def test_saving_over_a_model_replaces_all_of_it(directory):
    save(directory, version="2", components={"vae": components()["vae"]})
    assert sorted(os.listdir(directory)) == ["model.toml", "vae"]
    assert read_index(directory).version == "2"


def test_a_name_may_be_as_long_as_the_file_system_has_it(tmp_path):
    directory = save(tmp_path / ("x" * 255), components={"vae": components()["vae"]})
    assert read_index(directory).name == "m"


def test_saving_over_something_else_is_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_bytes(b"x")
    with pytest.raises(ModelDirError, match="photos: exists and is no model directory"):
        save(tmp_path / "photos")
    assert os.listdir(tmp_path / "photos") == ["me.jpg"]


def test_a_failed_save_leaves_the_old_model(directory, monkeypatch):
    def fails(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_dir.save, "save_safetensors", fails)
    with pytest.raises(ModelDirError, match="cannot be written .No space left"):
        save(directory, version="2")
    assert read_index(directory).version == "1"
    assert sorted(os.listdir(directory.parent)) == ["model", "site"]


class Moves:
    """``os.replace`` that fails at one of its calls, before or after the move."""

    def __init__(self, at: int, error: BaseException, *, moved: bool) -> None:
        self.calls, self.at, self.error, self.moved = 0, at, error, moved

    def __call__(self, source: Any, target: Any) -> None:
        self.calls += 1
        if self.calls == self.at and not self.moved:
            raise self.error
        os.rename(source, target)
        if self.calls == self.at:
            raise self.error


def content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


FULL = OSError(28, "No space left on device")


def add(directory: Path, **_: Any) -> None:
    """A VAE in the place of the old one, and a text encoder beside it."""
    parts = [part for part in read_model_dir(directory) if part.component in ("vae", "audio_encoder")]
    write_components(directory, [parts[0], replace(parts[1], component="text_encoder")], name="other")


# Before and after every move: two for the whole directory; three, one of them without a predecessor, and the index.
CUTS = [(save, at) for at in (1, 2)] + [(add, at) for at in (1, 2, 3, 4, 5)]


@pytest.mark.parametrize("moved", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()], ids=["full", "interrupt"])
@pytest.mark.parametrize(("write", "at"), CUTS, ids=[f"{write.__name__} {at}" for write, at in CUTS])
def test_a_cut_at_any_move_leaves_the_old_model(directory, monkeypatch, write, at, error, moved):
    before, beside = content(directory), sorted(os.listdir(directory.parent))
    # What the checkpoint writer moves is not meant.
    replace_file = os.replace
    moves = Moves(at, error, moved=moved)
    monkeypatch.setattr(os, "replace", lambda a, b: (replace_file if Path(a).suffix == ".part" else moves)(a, b))
    with pytest.raises(ModelDirError if error is FULL else KeyboardInterrupt):
        write(directory, version="2")
    monkeypatch.undo()
    assert moves.calls > at or (at == 1 and not moved)
    assert content(directory) == before
    assert sorted(os.listdir(directory.parent)) == beside


def test_an_importer_says_how_its_model_is_used(directory, tmp_path):
    vae, backbone, *_ = read_model_dir(directory)
    index = write_components(tmp_path / "new", [vae, replace(backbone, generation={"fps": 16.0})], name="new")
    assert index.generation.fps == 16.0
    with pytest.raises(ValueError, match="an importer says generation.speed, which no model has"):
        write_components(tmp_path / "other", [replace(vae, generation={"speed": 2})], name="other")
    assert not (tmp_path / "other").exists()
    # A model that exists keeps its own.
    assert write_components(directory, [replace(vae, generation={"fps": 16.0})], name="m").generation == GENERATION


def test_adding_replaces_components_of_the_same_name_alone(directory):
    before = content(directory)
    add(directory)
    after = content(directory)
    assert after.pop("text_encoder/config.toml") == before["audio_encoder/config.toml"]
    del after["text_encoder/model.safetensors"]
    assert {name for name in before if after.pop(name) != before[name]} == {"model.toml", "vae/model.safetensors"}
    assert not after
    assert set(read_index(directory).components) == {*components(), "text_encoder"}
    assert sorted(os.listdir(directory.parent)) == ["model", "site"]


def test_what_cannot_be_moved_back_is_kept(directory, monkeypatch):
    before = content(directory)
    real = os.replace
    moves: list[Path] = []

    def fails(source: Path, target: Path) -> None:
        moves.append(Path(source))
        if len(moves) > 1:
            raise FULL
        real(source, target)

    monkeypatch.setattr(model_dir.save, "save_safetensors", lambda *_: None)
    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(ModelDirError, match="cannot be written .No space left"):
        save(directory)
    assert content(moves[-1]) == before


def test_saving_checks_the_plugin(tmp_path):
    wrong = components() | {"vae": ("fake", FakeBackbone(FakeBackboneConfig()))}
    with pytest.raises(ModelDirError, match="components.vae: plugin 'fake' makes FakeVAE, got FakeBackbone"):
        save(tmp_path / "m", components=wrong)
    with pytest.raises(ModelDirError, match="unknown component 'eyes'"):
        save(tmp_path / "m", components={"eyes": components()["vae"]})
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fps": 0}, "generation.fps must be positive"),
        ({"fps": float("inf")}, "generation.fps must be positive and finite"),
        ({"guidance_scale": -1.0}, "generation.guidance_scale must be at least 0"),
        ({"max_aspect": 0.5}, "generation.max_aspect must be at least 1"),
        ({"motion_frames": 17}, r"generation.motion_frames must be in \[0, segment_frames = 17\)"),
    ],
)
def test_generation_settings(change, message):
    with pytest.raises(ValueError, match=message):
        replace(GENERATION, **change)
