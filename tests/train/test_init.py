"""Omni initialisation: the base's numbers exactly, in little memory, and one line for what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from omnihuman_core.contracts import (
    AudioCondition,
    Conditioning,
    PoseCondition,
    ReferenceCondition,
    TextCondition,
)
from omnihuman_core.mmdit import MMDiT
from omnihuman_core.mmdit.state_dict_adapter import HunyuanVideoDiffusersAdapter
from omnihuman_core.model_dir import load_component, read_index
from omnihuman_train.cli import main
from tests.public_models import save_hunyuan_15_transformer, save_hunyuan_transformer

pytest.importorskip("diffusers")

SHARD = "300KB"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The transformer of a pipeline, in several shards."""
    folder = tmp_path_factory.mktemp("public") / "pipeline"
    save_hunyuan_transformer(folder / "transformer", shard=SHARD)
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 2
    return folder


@pytest.fixture(scope="module")
def model(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("omni") / "model"
    assert main(["init", "--base", str(base), "--out", str(out), "--set", "audio_dim=6"]) == 0
    return out


def draw() -> tuple[torch.Tensor, torch.Tensor, TextCondition]:
    torch.manual_seed(1)
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    text = TextCondition(tokens=torch.randn(2, 5, 12), mask=mask, pooled=torch.randn(2, 10))
    return torch.randn(2, 4, 3, 8, 6), torch.tensor([0.3, 0.9]), text


@torch.no_grad()
def run(model: MMDiT, **conditions: object) -> torch.Tensor:
    latents, sigma, text = draw()
    return model(latents, sigma, Conditioning(text=text, **conditions))


def test_without_new_conditions_the_output_is_that_of_the_base(base: Path, model: Path) -> None:
    import diffusers

    public = diffusers.HunyuanVideoTransformer3DModel.from_pretrained(base / "transformer").eval()
    omni = load_component(model, "backbone")
    plain = MMDiT(
        type(omni.config)(**{**vars(omni.config), "audio_dim": None, "audio_blocks": (), "pose_channels": None,
                             "segment_embedding": False})
    ).eval()  # fmt: skip
    plain.load_state_dict(HunyuanVideoDiffusersAdapter(plain.config).to_native(public.state_dict()))
    assert torch.equal(run(omni), run(plain))
    latents, sigma, text = draw()
    with torch.no_grad():
        want = public(
            latents, 1000 * sigma, text.tokens, text.mask.float(), text.pooled, guidance=torch.full((2,), 1000.0)
        ).sample
    assert (run(omni) - want).norm() <= 1e-5 * want.norm()


@torch.no_grad()
def test_hunyuan_video_15_gives_its_picture_channels_to_poses(tmp_path: Path) -> None:
    public = save_hunyuan_15_transformer(tmp_path / "public")
    options = ["--set", "audio_dim=6", "--set", "spatial_stride=16", "--set", "pose_channels=7"]
    assert main(["init", "--base", str(tmp_path / "public"), "--out", str(tmp_path / "omni"), *options]) == 0
    omni = load_component(tmp_path / "omni", "backbone")
    assert omni.patch_embed.pose_proj.weight.shape[1] == 7
    groups = omni.config.text_groups
    torch.manual_seed(1)
    latents, sigma = torch.randn(2, 4, 3, 4, 6), torch.tensor([0.3, 0.9])
    prompt, glyphs = torch.randn(2, 5, 12), torch.randn(2, 4, 10)
    mask = torch.arange(5) < torch.tensor([5, 3])[:, None]
    want = public(
        torch.cat([latents, torch.zeros(2, 5, 3, 4, 6)], dim=1),
        (1000 * sigma).to(latents.dtype),
        prompt,
        mask.to(latents.dtype),
        encoder_hidden_states_2=glyphs,
        encoder_attention_mask_2=torch.zeros(2, 4),
        image_embeds=torch.zeros(2, 3, 8),
    ).sample
    tokens = torch.zeros(2, groups.prompt_tokens + groups.glyph_tokens, 12)
    tokens[:, :5] = prompt
    counts = torch.zeros(tokens.shape[:2], dtype=torch.bool)
    counts[:, :5] = mask
    text = TextCondition(tokens=tokens, mask=counts)
    for words in (text, text.trimmed()):
        got = omni(latents, sigma, Conditioning(text=words))
        assert (got - want).norm() <= 1e-5 * want.norm()


def test_new_paths_are_there_and_silent_at_first(model: Path) -> None:
    omni = load_component(model, "backbone")
    assert omni.spec.conditions == {"text", "audio", "pose", "reference", "motion"}
    audio = AudioCondition(tokens=torch.randn(2, 3, 4, 6))
    pose = PoseCondition(features=torch.randn(2, 16, 3, 8, 6))
    assert torch.equal(run(omni, audio=audio, pose=pose), run(omni))
    reference = ReferenceCondition(latents=torch.randn(2, 4, 1, 8, 6))
    assert not torch.allclose(run(omni, reference=reference), run(omni))
    # Only the last step of each path is zero: a gradient reaches the audio within two updates.
    audio_weights = {name: value for name, value in omni.named_parameters() if ".audio." in name}
    zero = {name for name, value in audio_weights.items() if not value.any() and name.endswith("weight")}
    assert zero == {name for name in audio_weights if name.endswith("out.weight")}
    with torch.no_grad():
        for name in zero:
            audio_weights[name].normal_()
        omni.patch_embed.pose_proj.weight.normal_()
    assert not torch.allclose(run(omni, audio=audio), run(omni))
    assert not torch.allclose(run(omni, pose=pose), run(omni))


def test_encoders_fit_the_backbone(model: Path) -> None:
    spec = load_component(model, "backbone").spec
    audio = load_component(model, "audio_encoder").encode(torch.zeros(1, 9, 4, 768))
    assert audio.tokens.shape == (1, 3, 4, spec.audio_dim)
    maps = load_component(model, "pose_extractor").extract(torch.zeros(9, 133, 3), size=(32, 16))
    assert load_component(model, "pose_encoder").encode(maps[None]).features.shape == (1, spec.pose_channels, 3, 4, 2)


def test_same_seed_same_weights(base: Path, model: Path, tmp_path: Path) -> None:
    for seed, same in ((0, True), (1, False)):
        out = tmp_path / str(seed)
        assert (
            main(["init", "--base", str(base), "--out", str(out), "--set", "audio_dim=6", "--set", f"seed={seed}"]) == 0
        )
        for name in ("backbone", "audio_encoder"):
            first, second = (load_file(folder / name / "model.safetensors") for folder in (model, out))
            assert all(torch.equal(first[key], second[key]) for key in first) is same


def test_a_model_directory_is_a_base_too(base: Path, tmp_path: Path) -> None:
    from omnihuman_core.importing import read_public, write_components

    write_components(tmp_path / "ours", read_public(base), name="ours")
    assert main(["init", "--base", str(tmp_path / "ours"), "--out", str(tmp_path / "omni")]) == 0
    assert set(read_index(tmp_path / "omni").components) == {
        "backbone", "audio_encoder", "pose_encoder", "pose_extractor"
    }  # fmt: skip
    again = ["init", "--base", str(tmp_path / "omni"), "--out", str(tmp_path / "again")]
    assert main(again) == 2


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("other", "holds no checkpoint that is known"),
        ("shard", "shard is missing"),
        ("truncated", "truncated or not a safetensors file"),
        ("shape", "norm_out.linear.weight has shape (3, 3), this model wants (64, 32)"),
        ("outside", "'../x.safetensors' points outside the directory"),
        ("lost", "1 weights are missing, the first is norm_out.linear.weight"),
        ("alien", "1 keys are not of this model, the first is alien"),
    ],
)
def test_bad_bases_are_one_line_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str, message: str
) -> None:
    folder = tmp_path / "base"
    save_hunyuan_transformer(folder, shard=SHARD)
    index_file = next(folder.glob("*.index.json"))
    index = json.loads(index_file.read_text())
    shard = folder / index["weight_map"]["norm_out.linear.weight"]
    if fault == "other":
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | {"_class_name": "FluxTransformer2DModel"}))
    elif fault == "shard":
        shard.unlink()
    elif fault == "truncated":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif fault == "outside":
        index["weight_map"]["norm_out.linear.weight"] = "../x.safetensors"
        index_file.write_text(json.dumps(index))
    else:
        state = load_file(shard)
        state |= {"shape": {"norm_out.linear.weight": torch.zeros(3, 3)}, "alien": {"alien": torch.zeros(1)}}.get(
            fault, {}
        )
        if fault == "lost":
            del state["norm_out.linear.weight"]
        save_file(state, shard)
    assert main(["init", "--base", str(folder), "--out", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_pickles_are_left_to_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_hunyuan_transformer(tmp_path / "base")
    weights = tmp_path / "base" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    for base in (tmp_path / "base", weights.with_suffix(".bin")):
        assert main(["init", "--base", str(base), "--out", str(tmp_path / "out")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "diffusion_pytorch_model.bin is a pickle" in line
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_extended_is_refused(
    base: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    concat = tmp_path / "concat"
    save_hunyuan_transformer(concat, in_channels=9, image_condition_type="latent_concat")
    for arguments, message in (
        (["--base", str(concat), "--out", str(tmp_path / "out")], "the base takes pose channels already (5)"),
        (["--base", str(model), "--out", str(tmp_path / "out")], "the base takes audio channels already (6)"),
        (["--base", str(base), "--out", str(model)], "has a backbone already"),
        (["--base", str(base), "--out", str(base)], "exists and is no model directory"),
        (["--base", str(base), "--out", str(tmp_path / "o"), "--set", "audio_dim=x"], "audio_dim: must be int"),
        (["--base", str(base), "--out", str(tmp_path / "o"), "--set", "audio_encoder=x"], "preset 'x' of 'audio'"),
    ):
        assert main(["init", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


PEAK = """
import sys
from pathlib import Path
from omnihuman_train.init import InitConfig, initialise

def memory(field):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])

config = InitConfig(audio_dim=64, audio_encoder="tiny")
# The libraries take their share at first use: another base pays for that.
initialise(sys.argv[1], sys.argv[3] + "/toy", config)
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
initialise(sys.argv[2], sys.argv[3] + "/model", config)
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's account of peak memory")
def test_memory_stays_far_below_the_checkpoint(base: Path, tmp_path: Path) -> None:
    """26 GB of weights have 4 GB to spare; here the same share of a smaller checkpoint with as many blocks."""
    import diffusers

    with torch.device("meta"):
        public = diffusers.HunyuanVideoTransformer3DModel(
            num_attention_heads=3, num_layers=20, num_single_layers=40, text_embed_dim=64, pooled_projection_dim=64
        )
    shards = [{} for _ in range(6)]
    state = public.state_dict()
    for number, (key, value) in enumerate(state.items()):
        shards[number * len(shards) // len(state)][key] = torch.zeros(value.shape, dtype=torch.bfloat16)
    names = [f"diffusion_pytorch_model-{i + 1:05d}-of-00006.safetensors" for i in range(6)]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, tmp_path / name)
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    public.save_config(tmp_path)
    size = sum((tmp_path / name).stat().st_size for name in names)
    del shards
    command = [sys.executable, "-c", PEAK, str(base), str(tmp_path), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(f"peak {int(done.stdout) / 2**20:.0f} MiB above the start for {size / 2**20:.0f} MiB of weights")
    assert int(done.stdout) < size * 4 / 26
    written = (tmp_path / "out" / "model" / "backbone" / "model.safetensors").stat().st_size
    assert written > size
