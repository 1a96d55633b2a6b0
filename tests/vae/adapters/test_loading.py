"""Published folders and files: what loads, and one clear line for what does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from safetensors.torch import load_file, save_file

from omnihuman_core.contracts.state_dict import StateDictAdapter
from omnihuman_vae.adapters import (
    DiffusersVideoVAE,
    HunyuanVideoVAE,
    HunyuanVideoVAEDiffusersAdapter,
    HunyuanVideoVAEOriginalAdapter,
    WanVAE,
    WanVAEDiffusersAdapter,
    WanVAEOriginalAdapter,
    load,
    load_hunyuan_video,
    load_wan,
    loading,
)
from omnihuman_vae.adapters.wan_config import wan_2_1
from tests.vae.adapters.conftest import HUNYUAN, OTHERS, WAN, other, reference

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = WEIGHTS + ".index.json"


def refused(function: Callable[[], object], *parts: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        function()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for part in parts:
        assert part in message, message


@pytest.fixture(params=["wan", "hunyuan_video"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(name: str, tmp_path: Path) -> Path:
    reference(name).save_pretrained(tmp_path / name)
    return tmp_path / name


@pytest.fixture
def sharded(name: str, tmp_path: Path) -> Path:
    reference(name).save_pretrained(tmp_path / name, max_shard_size="40KB")
    assert len(list((tmp_path / name).glob("*.safetensors"))) > 2
    return tmp_path / name


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_folder(name: str, folder: Path) -> None:
    vae = load(folder)
    assert type(vae) is {"wan": WanVAE, "hunyuan_video": HunyuanVideoVAE}[name]
    assert vae.config == {"wan": WAN, "hunyuan_video": HUNYUAN}[name]
    assert not vae.training
    expected = reference(name).state_dict()
    for key, value in vae.state_dict().items():
        assert torch.equal(value, expected[key]), key
    assert {value.dtype for value in load(folder, dtype=torch.bfloat16).state_dict().values()} == {torch.bfloat16}


def test_shards(name: str, sharded: Path) -> None:
    expected = reference(name).state_dict()
    for key, value in load(sharded).state_dict().items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("model", OTHERS)
def test_folder_of_another_model_goes_through_diffusers(model: str, tmp_path: Path) -> None:
    theirs = other(model)
    theirs.vae.save_pretrained(tmp_path)
    vae = load(tmp_path)
    assert isinstance(vae, DiffusersVideoVAE)
    assert vae.latent_spec == theirs.latent_spec
    expected = theirs.state_dict()
    for key, value in vae.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_other_model(name: str, folder: Path, tmp_path: Path) -> None:
    wrong = load_hunyuan_video if name == "wan" else load_wan
    refused(lambda: wrong(folder), "config.json", "_class_name is 'AutoencoderKL", "expected AutoencoderKL")
    edit(folder / "config.json", lambda config: config.update(_class_name="UNet2DModel"))
    refused(lambda: load(folder), "_class_name is 'UNet2DModel'")


def test_whole_pipeline(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pipeline").mkdir()
    folder.rename(tmp_path / "pipeline" / "vae")
    refused(lambda: load(tmp_path / "pipeline"), "config.json: missing", "point at", "pipeline/vae")
    refused(lambda: load(tmp_path / "nothing"), "no such directory")


def test_missing_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    refused(lambda: load(sharded), shard.name, "shard is missing")


def test_no_weights(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    refused(lambda: load(folder), f"neither {WEIGHTS}", "pytorch_model.bin is a pickle")


def test_truncated(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
    refused(lambda: load(folder), WEIGHTS, "truncated or not a safetensors file")


def test_wrong_shape(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    key = next(key for key in state if key.endswith("conv_in.weight") or key.endswith("conv_in.conv.weight"))
    state[key] = state[key][:-1].clone()
    save_file(state, folder / WEIGHTS)
    refused(lambda: load(folder), key, f"has shape {tuple(state[key].shape)}", "the module wants")


def test_missing_and_unexpected_key(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    state["quant_conv.wrong"] = state.pop("quant_conv.bias")
    save_file(state, folder / WEIGHTS)
    refused(lambda: load(folder), "1 missing (quant_conv.bias)", "1 unexpected (quant_conv.wrong)")


@pytest.mark.parametrize("outside", ["../secret.safetensors", "/etc/secret.safetensors"])
def test_index_that_points_outside(sharded: Path, outside: str) -> None:
    edit(sharded / INDEX, lambda index: index["weight_map"].update({"quant_conv.bias": outside}))
    refused(lambda: load(sharded), INDEX, "points outside the directory")


def test_damaged_index_and_config(sharded: Path) -> None:
    edit(sharded / INDEX, lambda index: index.update(weight_map=[]))
    refused(lambda: load(sharded), INDEX, "weight_map must map")
    (sharded / "config.json").write_text("{")
    refused(lambda: load(sharded), "config.json", "not a JSON file")


def test_variants_that_the_native_classes_lack(name: str, folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.update(novelty=1))
    refused(lambda: load(folder), "unknown key 'novelty'")
    key = {"wan": "out_channels", "hunyuan_video": "temporal_compression_ratio"}[name]
    edit(folder / "config.json", lambda config: (config.pop("novelty"), config.update({key: 8})))
    refused(lambda: load(folder), f"{key} is 8", "the plugin 'diffusers'")


def test_original_names_of_wan() -> None:
    """The public conversion turns the names that we give into those of the folder, at full size."""
    adapter = WanVAEOriginalAdapter(wan_2_1())
    with torch.device("meta"):
        state = WanVAE(wan_2_1()).state_dict()
    original = adapter.from_native(state)
    assert "decoder.upsamples.4.shortcut.weight" in original
    converted = convert_wan_vae_to_diffusers(dict(original))
    assert list(converted) == list(state)
    assert all(converted[key] is state[key] for key in state)


@pytest.mark.parametrize(
    "adapter",
    [
        WanVAEDiffusersAdapter(WAN),
        WanVAEOriginalAdapter(WAN),
        HunyuanVideoVAEDiffusersAdapter(HUNYUAN),
        HunyuanVideoVAEOriginalAdapter(HUNYUAN),
    ],
    ids=lambda adapter: type(adapter).__name__,
)
def test_adapters_both_ways(adapter: StateDictAdapter) -> None:
    assert isinstance(adapter, StateDictAdapter)
    state = reference("wan" if adapter.config == WAN else "hunyuan_video").state_dict()
    public = adapter.from_native(state)
    back = adapter.to_native(public)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    refused(lambda: adapter.to_native({**public, "vae.surplus": torch.zeros(1)}), "vae.surplus")
    refused(lambda: adapter.from_native({**state, "surplus": torch.zeros(1)}), "surplus")


def test_original_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "wan_2_1", lambda: WAN)
    monkeypatch.setattr(loading, "hunyuan_video", lambda: HUNYUAN)
    read = {"wan": load_wan, "hunyuan_video": load_hunyuan_video}[name]
    adapter = WanVAEOriginalAdapter(WAN) if name == "wan" else HunyuanVideoVAEOriginalAdapter(HUNYUAN)
    state = reference(name).state_dict()
    original = {key: value.contiguous() for key, value in adapter.from_native(state).items()}
    path = tmp_path / "original.safetensors"
    save_file(original, path)
    vae = read(path)
    for key, value in vae.state_dict().items():
        assert torch.equal(value, state[key]), key
    first, *_ = original
    save_file({key: value for key, value in original.items() if key != first}, path)
    refused(lambda: read(path), "original.safetensors", "1 missing")
    save_file({**original, first: torch.zeros(1)}, path)
    refused(lambda: read(path), "has shape (1,)")
    path.write_bytes(path.read_bytes()[:1000])
    refused(lambda: read(path), "truncated")
