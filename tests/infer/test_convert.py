"""Published weights to a model directory: the same numbers, and one line for whatever is wrong with them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from omnihuman_core.contracts import Conditioning, TextCondition
from omnihuman_core.mmdit import MMDiT
from omnihuman_core.mmdit.state_dict_adapter import HunyuanVideoDiffusersAdapter
from omnihuman_core.model_dir import load_component, read_index
from omnihuman_infer.cli import main
from tests.public_models import save_hunyuan_transformer, wan_vae

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

WEIGHTS = "diffusion_pytorch_model.safetensors"


def converts(*arguments: object) -> None:
    assert main(["convert", *map(str, arguments)]) == 0


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that says why."""
    capsys.readouterr()
    assert main(["convert", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("omnihuman-infer: error: ")
    return line


def save_wav2vec2(folder: Path) -> Path:
    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, conv_dim=(8, 8),
        conv_kernel=(10, 8), conv_stride=(8, 40), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, vocab_size=8,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.Wav2Vec2Model(config).eval().save_pretrained(folder)
    return folder


def save_text(folder: Path) -> None:
    from tests.conditions.tiny_text import VOCAB_SIZE, save_tokenizer

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": VOCAB_SIZE}
    llama = transformers.LlamaConfig(**sizes, num_hidden_layers=4, max_position_embeddings=2048)
    transformers.LlamaModel(llama).eval().save_pretrained(folder / "text_encoder")
    clip = transformers.CLIPTextConfig(**sizes, num_hidden_layers=1, eos_token_id=2, bos_token_id=1)
    transformers.CLIPTextModel(clip).eval().save_pretrained(folder / "text_encoder_2")
    save_tokenizer(folder / "tokenizer", begin=True)
    save_tokenizer(folder / "tokenizer_2", begin=True, end=True)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole pipeline, as diffusers saves one."""
    folder = tmp_path_factory.mktemp("public") / "HunyuanVideo"
    save_hunyuan_transformer(folder / "transformer", shard="300KB")
    wan_vae(folder / "vae")
    save_text(folder)
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.5).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def converted(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ours") / "model"
    converts(pipeline, "--out", out)
    return out


def test_a_pipeline_becomes_every_component_it_has(converted: Path) -> None:
    index = read_index(converted)
    assert {name: entry.plugin for name, entry in index.components.items()} == {
        "backbone": "mmdit", "vae": "wan", "text_extractor": "text_hunyuan", "text_encoder": "text_states"
    }  # fmt: skip
    # A public base has not learnt to go without words.
    assert index.generation.default_prompt == "A person is talking."
    # Its guidance is inside, so one evaluation a step is all its pipeline makes; the shift is the scheduler's.
    assert (index.generation.fps, index.generation.guidance_scale, index.generation.sigma_shift) == (24.0, 1.0, 3.5)
    assert [path.name for path in converted.parent.iterdir()] == ["model"]
    assert not [path for path in converted.rglob("*") if path.suffix in (".bin", ".py", ".part")]


@pytest.mark.parametrize("shift", [{"shift": 3.0, "use_dynamic_shifting": True}, {}])
def test_a_scheduler_without_one_shift_leaves_ours(tmp_path: Path, shift: dict[str, object]) -> None:
    save_hunyuan_transformer(tmp_path / "public/transformer", shard="10MB")
    (tmp_path / "public/scheduler").mkdir()
    (tmp_path / "public/scheduler/scheduler_config.json").write_text(json.dumps(shift))
    converts(tmp_path / "public", "--out", tmp_path / "out")
    assert read_index(tmp_path / "out").generation.sigma_shift == 7.0


def test_a_shift_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_hunyuan_transformer(tmp_path / "public/transformer", shard="10MB")
    (tmp_path / "public/scheduler").mkdir()
    (tmp_path / "public/scheduler/scheduler_config.json").write_text('{"shift": "seven"}')
    assert "shift must be a positive number, got 'seven'" in refused(
        capsys, tmp_path / "public", "--out", tmp_path / "out"
    )


@torch.no_grad()
def test_the_backbone_gives_what_diffusers_gives(pipeline: Path, converted: Path) -> None:
    public = diffusers.HunyuanVideoTransformer3DModel.from_pretrained(pipeline / "transformer").eval()
    torch.manual_seed(1)
    text = TextCondition(tokens=torch.randn(1, 5, 12), mask=torch.ones(1, 5).bool(), pooled=torch.randn(1, 10))
    latents, sigma = torch.randn(1, 4, 3, 8, 6), torch.tensor([0.3])
    want = public(latents, 1000 * sigma, text.tokens, text.mask.float(), text.pooled, guidance=torch.tensor([6000.0]))
    got = load_component(converted, "backbone")(latents, sigma, Conditioning(text=text))
    assert (got - want.sample).norm() <= 1e-5 * want.sample.norm()


@torch.no_grad()
def test_the_vae_gives_what_diffusers_gives(pipeline: Path, converted: Path) -> None:
    public = diffusers.AutoencoderKLWan.from_pretrained(pipeline / "vae").eval()
    latents = torch.randn(1, 4, 3, 4, 4)
    want = public.decode(latents).sample
    assert (load_component(converted, "vae").decode(latents).clamp(-1, 1) - want).norm() <= 1e-5 * want.norm()


@torch.no_grad()
def test_text_comes_from_the_copied_folder_wherever_it_is_moved(
    pipeline: Path, converted: Path, tmp_path: Path
) -> None:
    from omnihuman_conditions.language.hunyuan import HunyuanTextConfig, HunyuanTextExtractor

    moved = shutil.copytree(converted, tmp_path / "moved")
    extractor, encoder = load_component(moved, "text_extractor"), load_component(moved, "text_encoder")
    assert str(moved) in extractor.config.llama.model
    want = HunyuanTextExtractor(HunyuanTextConfig.hunyuan_video(str(pipeline))).extract(["a hum", ""])
    got = extractor.extract(["a hum", ""])
    assert torch.equal(got.values, want.values)
    assert torch.equal(got.pooled, want.pooled)
    condition = encoder.encode(got)
    assert torch.equal(encoder.null(condition).tokens[0], want.values[1].to(condition.tokens))
    assert not torch.equal(condition.pooled[0], condition.pooled[1])


def test_a_model_is_named_after_its_folder(pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "HunyuanVideo-1.5"
    shutil.copytree(pipeline / "vae", folder / "vae")
    monkeypatch.chdir(folder)
    for number, source in enumerate((folder, ".", "vae/..")):
        converts(source, "--out", tmp_path / f"{number}")
        assert read_index(tmp_path / f"{number}").name == "HunyuanVideo-1.5"


def test_audio_and_single_components_are_added(pipeline: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    converts(pipeline, "--out", out, "--component", "vae", "--dtype", "bfloat16")
    before = (out / "vae" / "model.safetensors").read_bytes()
    converts(save_wav2vec2(tmp_path / "wav2vec2"), "--out", out)
    assert set(read_index(out).components) == {"vae", "audio_extractor"}
    assert (out / "vae" / "model.safetensors").read_bytes() == before
    assert {value.dtype for value in load_file(out / "vae" / "model.safetensors").values()} == {torch.bfloat16}
    features = load_component(out, "audio_extractor").extract(torch.randn(1, 16000))
    assert features.values.shape[2:] == (3, 16)
    converts(pipeline, "--out", out, "--component", "vae")
    assert {value.dtype for value in load_file(out / "vae" / "model.safetensors").values()} == {torch.float32}


def test_the_authors_single_file(tmp_path: Path) -> None:
    from dataclasses import replace

    from omnihuman_core.mmdit import hunyuan_video
    from omnihuman_core.mmdit.state_dict_adapter import HunyuanVideoOriginalAdapter

    architecture = replace(
        hunyuan_video(),
        hidden_size=128,
        num_heads=1,
        num_double_blocks=1,
        num_single_blocks=2,
        text_dim=8,
        pooled_dim=8,
    )
    state = MMDiT(architecture).state_dict()
    public = HunyuanVideoOriginalAdapter(architecture).from_native(state)
    # As caches of downloads have it: the name is that of a link.
    save_file({key: value.contiguous() for key, value in public.items()}, tmp_path / "0123abcd")
    (tmp_path / "original.safetensors").symlink_to(tmp_path / "0123abcd")
    torch.save({"module": public}, tmp_path / "mp_rank_00_model_states.pt")
    for name, flags in (("original.safetensors", ()), ("mp_rank_00_model_states.pt", ("--trust-pickle",))):
        out = tmp_path / f"from {name}"
        converts(tmp_path / name, "--out", out, *flags)
        assert read_index(out).name == Path(name).stem
        backbone = load_component(out, "backbone")
        assert backbone.config == architecture
        assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())


def test_the_authors_file_of_a_vae(pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from omnihuman_vae.adapters import WanVAEOriginalAdapter, load, loading

    vae = load(pipeline / "vae")
    monkeypatch.setattr(loading, "wan_2_1", lambda: vae.config)
    torch.save(WanVAEOriginalAdapter(vae.config).from_native(vae.state_dict()), tmp_path / "Wan2.1_VAE.pth")
    converts(tmp_path / "Wan2.1_VAE.pth", "--out", tmp_path / "out", "--trust-pickle")
    got = load_component(tmp_path / "out", "vae").state_dict()
    assert all(torch.equal(value, got[key]) for key, value in vae.state_dict().items())


def test_image_to_video_by_channels(tmp_path: Path) -> None:
    public = save_hunyuan_transformer(tmp_path / "i2v", in_channels=9, image_condition_type="latent_concat")
    converts(tmp_path / "i2v", "--out", tmp_path / "out")
    backbone = load_component(tmp_path / "out", "backbone")
    assert backbone.config.pose_channels == 5
    weight = public.state_dict()["x_embedder.proj.weight"]
    assert torch.equal(backbone.patch_embed.pose_proj.weight, weight[:, 4:].flatten(1))


def change_index(folder: Path, name: str) -> None:
    file = next(folder.glob("*.index.json"))
    index = json.loads(file.read_text())
    index["weight_map"]["proj_out.weight"] = name
    file.write_text(json.dumps(index))


def change_weights(file: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(file)
    change(state)
    save_file(state, file)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])


TRANSFORMER = {
    "shard is missing": lambda folder: shards(folder)[1].unlink(),
    "truncated or not a safetensors file": lambda folder: cut(shards(folder)[0]),
    "this model wants (16, 32)": lambda folder: [
        change_weights(
            file, lambda state: state.update({key: torch.zeros(2, 2) for key in state if key == "proj_out.weight"})
        )
        for file in shards(folder)
    ],
    "'../other.safetensors' points outside the directory": lambda folder: change_index(folder, "../other.safetensors"),
    "'/other.safetensors' points outside the directory": lambda folder: change_index(folder, "/other.safetensors"),
    "not a JSON file": lambda folder: next(folder.glob("*.index.json")).write_text("{"),
    "unknown key 'wings'": lambda folder: (folder / "config.json").write_text(
        json.dumps(json.loads((folder / "config.json").read_text()) | {"wings": 2})
    ),
}
VAE = {
    "truncated or not a safetensors file": lambda folder: cut(folder / WEIGHTS),
    "has shape (2, 2) in the file": lambda folder: change_weights(
        folder / WEIGHTS, lambda state: state.update({"quant_conv.weight": torch.zeros(2, 2)})
    ),
    "has neither": lambda folder: (folder / WEIGHTS).unlink(),
}
AUDIO = {
    "damaged cannot be loaded": lambda folder: cut(folder / "model.safetensors"),
    "has shape": lambda folder: change_weights(
        folder / "model.safetensors",
        lambda state: state.update({"feature_projection.projection.weight": torch.zeros(2, 2)}),
    ),
    "lack 1 tensors": lambda folder: change_weights(
        folder / "model.safetensors", lambda state: state.pop("feature_projection.projection.weight")
    ),
}


@pytest.mark.parametrize(
    ("part", "message", "damage"),
    [
        (part, message, damage)
        for part, faults in (("transformer", TRANSFORMER), ("vae", VAE), ("audio", AUDIO))
        for message, damage in faults.items()
    ],
)
def test_damaged_weights_are_one_line_and_leave_a_model_as_it_was(
    pipeline: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    part: str,
    message: str,
    damage: Callable[[Path], Any],
) -> None:
    out = tmp_path / "model"
    converts(pipeline, "--out", out, "--component", "vae")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    folder = tmp_path / "damaged"
    if part == "audio":
        save_wav2vec2(folder)
    else:
        shutil.copytree(pipeline / part, folder)
    damage(folder)
    for target in (out, tmp_path / "new"):
        assert message in refused(capsys, folder, "--out", target)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"model", "damaged"}


def test_another_model_and_wrong_requests(pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "flux"
    other.mkdir()
    (other / "config.json").write_text('{"_class_name": "FluxTransformer2DModel"}')
    save_file({"x": torch.zeros(1)}, other / WEIGHTS)
    out = tmp_path / "out"
    assert "holds no checkpoint that is known" in refused(capsys, other, "--out", out)
    assert "holds no checkpoint that is known" in refused(capsys, other / WEIGHTS, "--out", out)
    assert "no such file or directory" in refused(capsys, tmp_path / "nowhere", "--out", out)
    assert "unknown component 'brain'" in refused(capsys, pipeline, "--out", out, "--component", "brain")
    assert "holds no audio_extractor" in refused(capsys, pipeline, "--out", out, "--component", "audio_extractor")
    assert "exists and is no model directory" in refused(capsys, pipeline / "vae", "--out", other)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flux"]


def pickled(pipeline: Path, folder: Path) -> Path:
    """The VAE as its authors might have saved it before safetensors, and wav2vec 2.0 in shards."""
    shutil.copytree(pipeline / "vae", folder / "vae")
    torch.save(load_file(folder / "vae" / WEIGHTS), folder / "vae" / "diffusion_pytorch_model.bin")
    (folder / "vae" / WEIGHTS).unlink()
    return folder


def test_a_pickle_needs_the_flag(pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = pickled(pipeline, tmp_path / "old")
    line = refused(capsys, source, "--out", tmp_path / "out")
    assert "diffusion_pytorch_model.bin is a pickle" in line
    assert "--trust-pickle" in line
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    converts(source, "--out", tmp_path / "out", "--trust-pickle")
    want, got = load_file(pipeline / "vae" / WEIGHTS), load_component(tmp_path / "out", "vae").state_dict()
    assert all(torch.equal(value, got[key]) for key, value in want.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "out"]


def test_pickled_shards_and_their_index(tmp_path: Path) -> None:
    source = save_wav2vec2(tmp_path / "wav2vec2")
    state = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    names = {key: f"pytorch_model-0000{1 + number % 2}-of-00002.bin" for number, key in enumerate(state)}
    for name in set(names.values()):
        torch.save({key: value for key, value in state.items() if names[key] == name}, source / name)
    (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    converts(source, "--out", tmp_path / "out", "--trust-pickle")
    folder = tmp_path / "out" / "audio_extractor" / "pretrained"
    assert len(list(folder.glob("model-*.safetensors"))) == 2
    assert not list(folder.rglob("*.bin"))
    load_component(tmp_path / "out", "audio_extractor")


class Malice:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


def test_code_in_a_pickle_does_not_run_even_with_the_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker, source = tmp_path / "ran", tmp_path / "weights.pt"
    torch.save({"x": torch.zeros(1), "y": Malice(marker)}, source)
    assert "cannot be converted" in refused(capsys, source, "--out", tmp_path / "out", "--trust-pickle")
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pt"]
    source.write_bytes(b"noise")
    assert "cannot be converted" in refused(capsys, source, "--out", tmp_path / "out", "--trust-pickle")
    torch.save({"steps": 3}, source)
    assert "holds no dictionary of tensors" in refused(capsys, source, "--out", tmp_path / "out", "--trust-pickle")
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pt"]


@pytest.mark.parametrize("module", ["torch", "omnihuman_infer"])
def test_code_beside_a_pickle_does_not_run(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    source = pickled(pipeline, tmp_path / "old")
    (source / f"{module}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(source)
    converts(".", "--out", tmp_path / "out", "--trust-pickle", "--component", "vae")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "out"]


def test_converted_weights_are_those_of_the_adapter(pipeline: Path, converted: Path) -> None:
    public = diffusers.HunyuanVideoTransformer3DModel.from_pretrained(pipeline / "transformer").state_dict()
    config = load_component(converted, "backbone").config
    want = HunyuanVideoDiffusersAdapter(config).to_native(public)
    got = load_file(converted / "backbone" / "model.safetensors")
    assert got.keys() == want.keys()
    assert all(torch.equal(got[key], want[key]) for key in want)
