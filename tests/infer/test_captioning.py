"""A request without a prompt: a captioner writes one, or one notice says what stands in."""

from __future__ import annotations

import base64
import dataclasses
import io
import pickle
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from omnihuman_core.model_dir import read_index
from omnihuman_infer import GenerateRequest, OmniHumanPipeline, RequestError, captioning
from omnihuman_infer.captioning import HeldCaptioner, with_caption
from omnihuman_infer.cli import main
from omnihuman_infer.media.picture import load_picture
from omnihuman_infer.presets import model_directory
from tests.conditions.captioners import Server, reply, running_server, save_llava

from .models import save_toy


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with running_server() as running:
        running.answer = reply("A man in\na red coat.")
        yield running


@pytest.fixture
def mute(request_: GenerateRequest) -> GenerateRequest:
    """A good request without a prompt."""
    return dataclasses.replace(request_, prompt=None)


def test_the_servers_words_are_the_prompt(toy: OmniHumanPipeline, mute: GenerateRequest, server: Server) -> None:
    request = dataclasses.replace(mute, captioner=server.url, captioner_model="eyes")
    clip = toy.prepare(request)
    assert (clip.prompt, clip.notices) == ("A man in a red coat.", ())
    want = toy.prepare(dataclasses.replace(mute, prompt="A man in a red coat."))
    assert torch.equal(clip.conditions.text.tokens, want.conditions.text.tokens)
    assert not torch.equal(clip.conditions.text.tokens, clip.conditions.negative_text.tokens)
    # The picture that was sent is the one of the request.
    (asked,) = server.asked
    data = asked[2]["messages"][0]["content"][1]["image_url"]["url"].split(",")[1]
    sent, own = Image.open(io.BytesIO(base64.b64decode(data))), load_picture(mute.image)
    assert sent.size == own.size
    assert all(abs(a - b) < 20 for a, b in zip(sent.getpixel((90, 10)), own.getpixel((90, 10)), strict=True))


def test_a_prompt_is_not_described_over(toy: OmniHumanPipeline, request_: GenerateRequest, server: Server) -> None:
    for prompt in ("a hum", ""):
        request = dataclasses.replace(request_, prompt=prompt, captioner=server.url, captioner_model="eyes")
        clip = toy.prepare(request)
        assert (clip.prompt, clip.notices) == (prompt, ())
    assert server.asked == []


def test_a_local_model_writes_the_prompt(mute: GenerateRequest, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from omnihuman_conditions.captioner_local import LocalCaptioner, LocalCaptionerConfig

    folder = save_llava(tmp_path / "eyes")
    told = with_caption(dataclasses.replace(mute, captioner=folder, device="cpu"), load_picture(mute.image))
    picture = torch.from_numpy(np.array(load_picture(mute.image))).permute(2, 0, 1) / 127.5 - 1
    assert told.prompt == LocalCaptioner(LocalCaptionerConfig.base(str(folder))).caption(picture)


def fake_captioners(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a local captioner is asked to do, in order, in the place of a model."""
    done: list[str] = []

    class Config:
        @classmethod
        def base(cls, path: str) -> str:
            return path

    class Fake:
        config_class = Config

        def __init__(self, path: str) -> None:
            self.name = Path(path).name
            done.append(f"load {self.name}")

        def to(self, device: torch.device) -> Fake:
            done.append(f"to {device}")
            return self

        def caption(self, picture: torch.Tensor) -> str:
            done.append("caption")
            if self.name == "broken":
                raise ValueError("no words")
            return f"as {self.name} sees it"

    monkeypatch.setattr("omnihuman_infer.captioning.plugin", lambda *_: Fake)
    return done


def test_a_captioner_runs_where_it_is_told_to(mute: GenerateRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    done = fake_captioners(monkeypatch)
    picture = load_picture(mute.image)
    told = with_caption(dataclasses.replace(mute, captioner="eyes"), picture, device=torch.device("meta"))
    assert told.prompt == "as eyes sees it"
    assert done == ["load eyes", "to meta", "caption"]
    done.clear()
    with_caption(dataclasses.replace(mute, captioner="eyes", device="cpu"), picture)
    assert done == ["load eyes", "to cpu", "caption"]


def test_a_held_captioner_is_loaded_once_and_waits_on_the_cpu(
    mute: GenerateRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, held, picture = fake_captioners(monkeypatch), HeldCaptioner(), load_picture(mute.image)

    def prompt(captioner: str) -> str | None:
        done.clear()
        request = dataclasses.replace(mute, captioner=captioner)
        return with_caption(request, picture, device=torch.device("meta"), held=held).prompt

    assert prompt("eyes") == "as eyes sees it"
    assert done == ["load eyes", "to meta", "caption", "to cpu"]
    assert prompt("./eyes") == "as eyes sees it"
    assert done == ["to meta", "caption", "to cpu"]
    assert prompt("others") == "as others sees it"
    assert done == ["load others", "to meta", "caption", "to cpu"]
    # A failure leaves nothing on the device.
    with pytest.raises(RequestError, match="^captioner: no words"):
        prompt("broken")
    assert done == ["load broken", "to meta", "caption", "to cpu"]


def test_threads_take_turns_with_a_held_captioner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread must neither swap the captioner nor move it while it describes a picture."""

    class Captioner:
        def __init__(self, folder: Path) -> None:
            self.folder = folder

        def to(self, device: torch.device) -> Captioner:
            self.device = device
            return self

        def caption(self, picture: torch.Tensor) -> str:
            # Long enough for the other threads to come in.
            time.sleep(0.002)
            return f"{self.folder.name} on {self.device}"

    monkeypatch.setattr(captioning, "_local", Captioner)
    held, picture, device = HeldCaptioner(), torch.zeros(3, 2, 2), torch.device("meta")

    def ask(number: int) -> str:
        return held.caption(tmp_path / str(number % 2), picture, device=device)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(24))) == [f"{number % 2} on meta" for number in range(24)]
    # A copy for another process begins anew.
    assert pickle.loads(pickle.dumps(held)).caption(tmp_path, picture, device=device) == f"{tmp_path.name} on meta"


def test_a_held_model_says_the_same_again(mute: GenerateRequest, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    request = dataclasses.replace(mute, captioner=save_llava(tmp_path / "eyes"), device="cpu")
    picture, held = load_picture(mute.image), HeldCaptioner()
    want = with_caption(request, picture).prompt
    assert [with_caption(request, picture, held=held).prompt for _ in range(2)] == [want, want]


def test_without_a_captioner_there_is_one_notice_and_the_models_null(
    toy: OmniHumanPipeline, mute: GenerateRequest
) -> None:
    clip = toy.prepare(mute)
    assert clip.notices == ("no prompt and no captioner: the text says nothing; give --prompt or --captioner",)
    assert clip.prompt == ""
    assert torch.equal(clip.conditions.text.tokens, clip.conditions.negative_text.tokens)


def test_a_model_may_bring_a_neutral_prompt(mute: GenerateRequest, tmp_path: Path) -> None:
    model = OmniHumanPipeline.from_pretrained(save_toy(tmp_path / "model", default_prompt="A hum."), device="cpu")
    clip = model.prepare(mute)
    assert clip.notices == ('no prompt and no captioner: the prompt is "A hum."; give --prompt or --captioner',)
    want = model.prepare(dataclasses.replace(mute, prompt="A hum."))
    assert torch.equal(clip.conditions.text.tokens, want.conditions.text.tokens)
    assert want.notices == ()


def test_the_shipped_model_has_learnt_no_text() -> None:
    assert read_index(model_directory("tiny")).generation.default_prompt == ""


def test_a_model_without_text_is_not_described_to(mute: GenerateRequest, server: Server, tmp_path: Path) -> None:
    folder = save_toy(tmp_path / "model", leave_out=("text_extractor", "text_encoder"))
    model = OmniHumanPipeline.from_pretrained(folder, device="cpu")
    assert model.prepare(mute).notices == ()
    with pytest.raises(RequestError, match="^captioner: the model toy lacks text_extractor and text_encoder"):
        model.prepare(dataclasses.replace(mute, captioner=server.url, captioner_model="eyes"))


def test_command_line(mute: GenerateRequest, toy_dir: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "--image", str(mute.image), "--audio", str(mute.audio), "--out", str(mute.out)]
    words += ["--model", str(toy_dir), "--num-steps", "1", "--seconds", "0.2", "--device", "cpu"]
    assert main([*words, "--captioner", server.url, "--captioner-model", "eyes"]) == 0
    assert 'note: the captioner wrote "A man in a red coat."\n' in capsys.readouterr().err
    assert main(words) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1


def test_a_note_comes_before_the_work(
    mute: GenerateRequest,
    toy: OmniHumanPipeline,
    toy_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said: list[str] = []

    def first_step(*_: object, **__: object) -> None:
        said.append(capsys.readouterr().err)
        raise RequestError("enough")

    monkeypatch.setattr("omnihuman_infer.denoising.Denoiser.__call__", first_step)
    words = ["generate", "--image", str(mute.image), "--audio", str(mute.audio), "--out", str(mute.out)]
    assert main([*words, "--model", str(toy_dir), "--device", "cpu"]) == 2
    assert said == ["note: no prompt and no captioner: the text says nothing; give --prompt or --captioner\n"]


def test_a_servers_failure_is_one_line(
    mute: GenerateRequest, toy_dir: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "--image", str(mute.image), "--audio", str(mute.audio), "--out", str(mute.out)]
    words += ["--model", str(toy_dir), "--device", "cpu"]
    server.status, server.answer = 500, {"error": {"message": "out of\nmemory"}}
    assert main([*words, "--captioner", server.url, "--captioner-model", "eyes"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"omnihuman-infer: error: captioner: captioner at {server.url} answered 500: out of memory"
    assert not mute.out.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"captioner": "/no/where"}, "captioner: /no/where is no directory"),
        ({"captioner": "http://127.0.0.1:1/v1"}, "captioner_model: names a model"),
        ({"captioner_model": "eyes"}, "captioner_model: names a model"),
        ({"captioner_key": "KEY"}, "captioner_key: is that of a server"),
        ({"captioner": ".", "captioner_model": "eyes"}, "captioner: . is no http:// or https:// address"),
        ({"captioner": ".", "captioner_key": "KEY"}, "captioner: . is no http:// or https:// address"),
    ],
)
def test_wrong_requests(mute: GenerateRequest, changes: dict[str, str], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        dataclasses.replace(mute, **changes).validate()
    assert str(caught.value).startswith(message)


def test_what_a_captioner_refuses_is_one_line(mute: GenerateRequest, tmp_path: Path) -> None:
    picture = load_picture(mute.image)
    with pytest.raises(RequestError, match="^captioner: captioner processor in .* cannot be loaded") as caught:
        with_caption(dataclasses.replace(mute, captioner=tmp_path, device="cpu"), picture)
    assert "\n" not in str(caught.value)
    with pytest.raises(RequestError, match=r"^captioner: .* must look like http://host:port/v1"):
        with_caption(dataclasses.replace(mute, captioner="http://", captioner_model="eyes"), picture)
