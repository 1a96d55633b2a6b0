"""Every fault of a published folder with every kind of importer: one line that names the place, nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from omnihuman_infer.cli import main
from tests.public_models import save_hunyuan_transformer

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from tests.vae.adapters.conftest import other, reference  # noqa: E402

from .models import save_toy  # noqa: E402
from .test_convert_importers import save_t5, save_wav2vec2  # noqa: E402

SHARD = "40KB"


def transformer(folder: Path) -> Path:
    save_hunyuan_transformer(folder, shard="300KB")
    return folder


def transformer_15(folder: Path) -> Path:
    torch.manual_seed(0)
    model = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1,
        num_refiner_layers=1, text_embed_dim=16, text_embed_2_dim=12, image_embed_dim=8, rope_axes_dim=(4, 6, 6),
    )  # fmt: skip
    model.save_pretrained(folder, max_shard_size="300KB")
    return folder


def native_vae(folder: Path) -> Path:
    reference("wan").save_pretrained(folder, max_shard_size=SHARD)
    return folder


def diffusers_vae(folder: Path) -> Path:
    other("cogvideox").vae.save_pretrained(folder, max_shard_size=SHARD)
    return folder


def sharded(folder: Path) -> Path:
    """Cut the one weight file of a transformers folder in two, as large models are published."""
    whole = folder / "model.safetensors"
    state = load_file(whole)
    names = {key: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, key in enumerate(state)}
    for name in set(names.values()):
        part = {key: value for key, value in state.items() if names[key] == name}
        save_file(part, folder / name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    whole.unlink()
    return folder


def speech(folder: Path) -> Path:
    return sharded(save_wav2vec2(folder, stable=False))


def text(folder: Path) -> Path:
    sharded(save_t5(folder, "UMT5") / "text_encoder")
    return folder


SOURCES = {
    "transformer": transformer,
    "transformer_15": transformer_15,
    "native_vae": native_vae,
    "diffusers_vae": diffusers_vae,
    "speech": speech,
    "text": text,
}


def weights(source: Path) -> Path:
    """The folder that holds the shards."""
    return next(source.rglob("*.index.json")).parent


def edit_json(file: Path, change: Callable[[dict[str, object]], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def another_model(folder: Path) -> str:
    def change(config: dict[str, object]) -> None:
        for key in ("_class_name", "model_type"):
            if key in config:
                config[key] = "FluxTransformer2DModel"

    edit_json(folder / "config.json", change)
    return "holds no checkpoint that is known"


def missing_shard(folder: Path) -> str:
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    return shard.name


def truncated(folder: Path) -> str:
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-8])
    return shard.parent.name


def wrong_shape(folder: Path) -> str:
    shard = sorted(folder.glob("*.safetensors"))[0]
    state = load_file(shard)
    # A head for pretraining, which wav2vec 2.0 is published with, is not read.
    key = next(key for key, value in state.items() if value.ndim > 1 and not key.startswith(("project_", "quantizer")))
    state[key] = torch.zeros(2, 3)
    save_file(state, shard, metadata={"format": "pt"})
    return "has shape (2, 3)"


def index_outside(folder: Path) -> str:
    def change(index: dict[str, object]) -> None:
        names = index["weight_map"]
        assert isinstance(names, dict)
        names[next(iter(names))] = "../secret.safetensors"

    edit_json(next(folder.glob("*.index.json")), change)
    # The file is there: what is refused is where it is.
    save_file({"x": torch.zeros(1)}, folder.parent / "secret.safetensors")
    return "'../secret.safetensors' points outside the directory"


def pickled(folder: Path) -> str:
    state = {key: value for shard in folder.glob("*.safetensors") for key, value in load_file(shard).items()}
    for file in (*folder.glob("*.safetensors"), *folder.glob("*.index.json")):
        file.unlink()
    torch.save(state, folder / "pytorch_model.bin")
    return "pytorch_model.bin is a pickle, a format that can carry code"


FAULTS = (another_model, missing_shard, truncated, wrong_shape, index_outside, pickled)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("public")
    return {name: save(root / name) for name, save in SOURCES.items()}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("kind", SOURCES)
def test_one_line_and_nothing_written(
    sources: dict[str, Path],
    toy_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    fault: Callable[[Path], str],
) -> None:
    source = shutil.copytree(sources[kind], tmp_path / "in" / kind)
    model = shutil.copytree(toy_dir, tmp_path / "out" / "model")
    expected = fault(weights(source))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    # Into a new directory, and into a model that has such a component already.
    for out in (tmp_path / "out" / "new", model):
        capsys.readouterr()
        assert main(["convert", str(source), "--out", str(out)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("omnihuman-infer: error: ")
        assert expected in line
        assert kind in line
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model"]


@pytest.mark.parametrize("kind", SOURCES)
def test_the_same_folders_convert_without_a_fault(sources: dict[str, Path], tmp_path: Path, kind: str) -> None:
    assert main(["convert", str(sources[kind]), "--out", str(tmp_path / "new")]) == 0


def test_a_model_directory_needs_no_converting(
    toy_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(toy_dir), "--out", str(tmp_path / "new")]) == 2
    assert f"{toy_dir} is a model directory already" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_model_is_loaded_whole_or_not_at_all(tmp_path: Path) -> None:
    """The last component that loads is damaged: none of the others comes back."""
    from omnihuman_infer import OmniHumanPipeline, RequestError

    folder = save_toy(tmp_path / "model")
    file = folder / "pose_encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(RequestError, match="truncated or not a safetensors file") as caught:
        OmniHumanPipeline.from_pretrained(folder, device="cpu")
    assert "\n" not in str(caught.value)
