import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from omnihuman_core.checkpoint import load_safetensors, save_safetensors
from omnihuman_core.model_dir import load_model
from omnihuman_infer import GenerateRequest, OmniHumanPipeline, RequestError
from omnihuman_infer.describe import describe
from omnihuman_infer.fields import ModelError
from omnihuman_infer.loading import check_directory, check_fit, resolve_device
from omnihuman_infer.presets import model_directory

from .models import make_components, save_toy


@pytest.fixture
def copy(toy_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_dir, tmp_path / "copy"))


def replace_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def refused(directory: Path) -> str:
    with pytest.raises(RequestError, match=r"^model: ") as caught:
        OmniHumanPipeline.from_pretrained(directory, device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_unknown_model_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"^model: 'huge' is unknown; .*tiny"):
        model_directory("huge")
    with pytest.raises(RequestError, match=r"^model: .* holds no model.toml"):
        model_directory(str(tmp_path))
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(RequestError, match=r"^model: .* is a file"):
        model_directory(str(file))


def test_missing_component(copy: Path) -> None:
    shutil.rmtree(copy / "backbone")
    assert "backbone" in refused(copy)


def test_missing_weights(copy: Path) -> None:
    (copy / "vae" / "model.safetensors").unlink()
    assert "vae" in refused(copy)


def test_truncated_weights(copy: Path) -> None:
    path = copy / "backbone" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    message = refused(copy)
    assert "backbone" in message
    assert "truncated" in message


def test_wrong_shape_names_the_tensor(copy: Path) -> None:
    path = copy / "vae" / "model.safetensors"
    state = load_safetensors(path)
    state = {key: value.clone() for key, value in state.items()}
    state["latents_mean"] = torch.zeros(5)
    save_safetensors(state, path)
    message = refused(copy)
    assert "latents_mean" in message
    assert "(5,)" in message
    assert "(4,)" in message


def test_wrong_contract_version(copy: Path) -> None:
    replace_text(copy / "model.toml", "omnihuman.video_vae.v1", "omnihuman.video_vae.v2")
    message = refused(copy)
    assert "version 2" in message
    with pytest.raises(ModelError, match="version 2"):
        check_directory(str(copy), GenerateRequest())


def test_unknown_plugin_and_unknown_key(copy: Path) -> None:
    replace_text(copy / "model.toml", 'plugin = "mmdit"', 'plugin = "unet"')
    assert "'unet' is not installed" in refused(copy)


def test_unknown_key_in_a_config(copy: Path) -> None:
    path = copy / "vae" / "config.toml"
    path.write_text("colour = 1\n" + path.read_text())
    assert "colour" in refused(copy)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"latent_channels": 6}, "6"),
        ({"text_dim": 9}, "text_encoder"),
        ({"pooled_dim": 9}, "text_encoder makes a pooled width 8"),
        ({"audio_dim": 9}, "audio_encoder"),
        ({"pose_channels": 9}, "pose_encoder"),
    ],
)
def test_components_that_do_not_fit(toy_dir: Path, change: dict[str, int], names: str) -> None:
    components = load_model(toy_dir)
    other = make_components(**change)["backbone"][1]
    with pytest.raises(ModelError, match=rf"^model: .*{names}"):
        check_fit(dataclasses.replace(components, backbone=other), device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"size_multiple": 8}, "size_multiple"),
        ({"segment_frames": 18}, "segment_frames"),
        ({"motion_frames": 6}, "generation.motion_frames"),
        ({"sampler": "eulr"}, "^model: generation.sampler: must be one of"),
        ({"guidance_schedule": "sine"}, "^model: generation.guidance_schedule"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, settings: dict[str, int], names: str) -> None:
    directory = save_toy(tmp_path / "toy", **settings)
    with pytest.raises(ModelError, match=names):
        OmniHumanPipeline.from_pretrained(directory, device="cpu")


def test_model_without_some_conditions(tmp_path: Path, request_: GenerateRequest) -> None:
    left_out = ("pose_extractor", "pose_encoder", "text_extractor", "text_encoder")
    directory = save_toy(tmp_path / "toy", leave_out=left_out)
    pipeline = OmniHumanPipeline.from_pretrained(directory, device="cpu")
    with pytest.raises(
        RequestError, match=r"^prompt: the model toy lacks text_extractor and text_encoder; .* --component"
    ):
        pipeline(request_)
    pose = tmp_path / "pose.json"
    pose.write_text("{}")
    with pytest.raises(RequestError, match=r"^pose: the model toy lacks pose_extractor and pose_encoder; leave it out"):
        pipeline(dataclasses.replace(request_, prompt=None, pose=pose))
    with pytest.raises(RequestError, match=r"^pose: this model takes no poses"):
        check_directory(str(directory), GenerateRequest(pose=pose))
    assert pipeline(dataclasses.replace(request_, prompt=None)).num_frames == 25


def test_a_picture_that_the_model_cannot_take_is_refused(tmp_path: Path, request_: GenerateRequest) -> None:
    directory = save_toy(tmp_path / "toy", mmdit={"reference": False})
    pipeline = OmniHumanPipeline.from_pretrained(directory, device="cpu")
    with pytest.raises(RequestError, match=r"^image: the model toy takes none; leave it out or choose another model"):
        pipeline(request_)
    assert pipeline(dataclasses.replace(request_, image=None)).num_frames == 25


def test_an_encoder_without_a_null_is_found_at_the_start(toy_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    components = load_model(toy_dir)

    def refuse(like: object) -> None:
        raise ValueError("no null stored")

    monkeypatch.setattr(components.text_encoder, "null", refuse)
    with pytest.raises(ModelError, match=r"^model: no null stored"):
        check_fit(components, device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize(
    ("change", "names"),
    [({"sampler": "eulr"}, "sampler"), ({"image": None, "aspect": 30.0}, "aspect")],
)
def test_what_the_index_tells_is_checked_without_the_weights(
    toy_dir: Path, request_: GenerateRequest, change: dict[str, object], names: str
) -> None:
    with pytest.raises(RequestError, match=rf"^{names}: "):
        check_directory(str(toy_dir), dataclasses.replace(request_, **change))


def test_a_captioner_for_a_model_without_text(tmp_path: Path, request_: GenerateRequest) -> None:
    directory = save_toy(tmp_path / "toy", leave_out=("text_extractor", "text_encoder"))
    with pytest.raises(RequestError, match=r"^captioner: the model toy lacks text_extractor"):
        check_directory(str(directory), dataclasses.replace(request_, prompt=None, captioner="http://localhost:1/v1"))


def test_what_a_model_lacks_is_named_with_the_command_that_adds_it(tmp_path: Path, request_: GenerateRequest) -> None:
    directory = save_toy(tmp_path / "deaf", leave_out=("audio_extractor",))
    with pytest.raises(RequestError) as caught:
        OmniHumanPipeline.from_pretrained(directory, device="cpu")(request_)
    assert str(caught.value) == (
        "audio: the model toy lacks audio_extractor; "
        "omnihuman-infer convert SRC --out DIR --component audio_extractor adds what is missing"
    )
    directory = save_toy(tmp_path / "untrained", leave_out=("audio_encoder",))
    with pytest.raises(RequestError, match=r"^audio: the model toy lacks audio_encoder; leave it out or choose"):
        OmniHumanPipeline.from_pretrained(directory, device="cpu")(request_)


def test_a_backbone_may_take_no_voice(toy_dir: Path, request_: GenerateRequest) -> None:
    components = load_model(toy_dir)
    backbone = make_components(audio_dim=None, audio_blocks=())["backbone"][1]
    deaf = OmniHumanPipeline(
        dataclasses.replace(components, backbone=backbone), model="toy", device=torch.device("cpu"), dtype=torch.float32
    )
    with pytest.raises(RequestError, match=r"^audio: the model toy takes none; leave it out or choose another model"):
        deaf(request_)


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    if not torch.cuda.is_available():
        assert resolve_device("auto") == torch.device("cpu")
        with pytest.raises(RequestError, match=r"^device: cuda:0 is not there"):
            resolve_device("cuda:0")


def test_description(toy_dir: Path) -> None:
    text = describe(toy_dir)
    assert text.startswith("toy 1")
    assert "mmdit" in text
    assert "omnihuman-vae" in text
    assert "segment_frames" in text
    assert "no weights" in text


@pytest.mark.parametrize("where", ["load_model", "prepare_clip", "decode_stream"])
def test_too_little_memory_is_said_in_one_line(
    toy_dir: Path, request_: GenerateRequest, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has a total of 79.1 GiB")

    def run() -> None:
        pipeline = OmniHumanPipeline.from_pretrained(toy_dir, device="cpu")
        monkeypatch.setattr(pipeline.components.vae, "decode_stream", full)
        pipeline(request_)

    if where != "decode_stream":
        module = "loading" if where == "load_model" else "pipeline"
        monkeypatch.setattr(f"omnihuman_infer.{module}.{where}", full)
    with pytest.raises(RequestError, match="device: cpu has too little free memory") as error:
        run()
    assert "\n" not in str(error.value)
    assert not request_.out.exists()
