"""Captioners: a local vision-language model, and a server with the OpenAI chat interface."""

import base64
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from omnihuman_conditions.captioner import Captioner, CaptionerError, to_image
from omnihuman_conditions.captioner_local import LocalCaptioner, LocalCaptionerConfig
from omnihuman_conditions.captioner_server import ServerCaptioner, ServerCaptionerConfig
from omnihuman_core.testing.registration import check_registrable

from .captioners import Server, reply, running_server, save_llava

PICTURE = torch.linspace(-1, 1, 40)[None, None, :].expand(3, 20, 40).contiguous()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with running_server() as running:
        yield running


def test_a_server_is_sent_the_picture_and_answers(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answer = reply("  A man\nin a red coat. ")
    monkeypatch.setenv("CAPTION_KEY", "secret")
    captioner = ServerCaptioner(ServerCaptionerConfig.base(server.url + "/", "eyes", key_variable="CAPTION_KEY"))
    assert isinstance(captioner, Captioner)
    check_registrable(captioner)
    assert captioner.caption(PICTURE) == captioner.extract(PICTURE) == "A man in a red coat."
    path, headers, question = server.asked[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert (question["model"], question["max_tokens"]) == ("eyes", 120)
    text, picture = question["messages"][0]["content"]
    assert text["text"] == captioner.config.instruction
    kind, data = picture["image_url"]["url"].split(",")
    assert kind == "data:image/jpeg;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.size == (40, 20)
    row = torch.tensor([image.getpixel((x, 10))[0] for x in range(40)]) / 127.5 - 1  # type: ignore[index]
    torch.testing.assert_close(row, PICTURE[0, 10], atol=0.05, rtol=0)


def test_answers_in_parts(server: Server) -> None:
    server.answer = reply([{"type": "text", "text": "A man."}, {"type": "text", "text": "Rain."}])
    captioner = ServerCaptioner(ServerCaptionerConfig.base(server.url, "eyes"))
    assert captioner.caption(PICTURE) == "A man. Rain."
    assert "Authorization" not in server.asked[0][1]


@pytest.mark.parametrize(
    ("status", "answer", "match"),
    [
        (401, {"error": {"message": "bad\nkey"}}, "answered 401: bad key"),
        (404, {"message": "no such model"}, "answered 404: no such model"),
        (500, b"<html>", "answered 500: Internal Server Error"),
        (200, b"not json", "no chat completion"),
        (200, {"choices": []}, "no chat completion"),
        (200, [1], "no chat completion"),
        (200, reply(None), "without text"),
        (200, reply(" \n "), "empty description"),
        (200, b"x" * ((1 << 20) + 1), "more than 1048576 bytes"),
    ],
)
def test_bad_answers(server: Server, status: int, answer: Any, match: str) -> None:
    server.status, server.answer = status, answer
    with pytest.raises(CaptionerError, match=match) as caught:
        ServerCaptioner(ServerCaptionerConfig.base(server.url, "eyes")).caption(PICTURE)
    assert "\n" not in str(caught.value)


def test_a_redirect_is_not_followed(server: Server) -> None:
    server.status, server.headers, server.answer = 302, {"Location": server.url + "/elsewhere"}, {}
    with pytest.raises(CaptionerError, match="answered 302"):
        ServerCaptioner(ServerCaptionerConfig.base(server.url, "eyes")).caption(PICTURE)
    assert len(server.asked) == 1


def test_no_server_and_a_slow_one(server: Server) -> None:
    server.delay, server.answer = 0.5, reply("late")
    slow = replace(ServerCaptionerConfig.base(server.url, "eyes"), timeout_seconds=0.1)
    with pytest.raises(CaptionerError, match=r"no answer in 0\.1 s"):
        ServerCaptioner(slow).caption(PICTURE)
    port = server.server_port
    server.shutdown()
    server.server_close()
    with pytest.raises(CaptionerError, match="cannot be reached: .*refused"):
        ServerCaptioner(ServerCaptionerConfig.base(f"http://127.0.0.1:{port}/v1", "eyes")).caption(PICTURE)


def test_settings_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAPTION_KEY", raising=False)
    named = ServerCaptionerConfig.base("http://127.0.0.1:1/v1", "eyes", key_variable="CAPTION_KEY")
    with pytest.raises(CaptionerError, match="set the environment variable CAPTION_KEY"):
        ServerCaptioner(named).caption(PICTURE)
    for url in ("file:///etc/passwd", "127.0.0.1:8000", "http://", "http://host/v1?key=1"):
        with pytest.raises(ValueError, match="must look like http://host:port/v1"):
            ServerCaptionerConfig.base(url, "eyes")
    with pytest.raises(ValueError, match="must not hold a password"):
        ServerCaptionerConfig.base("http://me:secret@host/v1", "eyes")
    with pytest.raises(ValueError, match="timeout_seconds must be positive"):
        replace(named, timeout_seconds=0.0)
    with pytest.raises(ValueError, match="must name a model"):
        replace(named, model="")


def test_pictures() -> None:
    assert to_image(torch.zeros(3, 100, 400), max_side=40).size == (40, 10)
    assert to_image(torch.full((3, 2, 2), 5.0), max_side=40).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(ValueError, match=r"must be \(3, H, W\)"):
        to_image(torch.zeros(1, 4, 4), max_side=40)
    with pytest.raises(ValueError, match="NaN"):
        to_image(torch.full((3, 2, 2), float("nan")), max_side=40)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("llava"))


def test_a_local_model_describes_the_picture(directory: Path) -> None:
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    config = replace(LocalCaptionerConfig.base(str(directory), dtype="float32"), max_new_tokens=8)
    captioner = LocalCaptioner(config)
    assert isinstance(captioner, Captioner)
    got = captioner.caption(PICTURE)
    assert got == captioner.extract(PICTURE)

    processor = AutoProcessor.from_pretrained(directory)
    model = LlavaForConditionalGeneration.from_pretrained(directory).eval()
    image = to_image(PICTURE, max_side=768)
    inputs = processor(images=image, text="<image>" + config.instruction, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert got == " ".join(processor.batch_decode(ids, skip_special_tokens=True)[0].split())
    assert 0 < len(got) <= 16


def test_bad_directories(directory: Path, tmp_path: Path) -> None:
    def refused(path: Path, match: str) -> None:
        with pytest.raises(ValueError, match=match) as caught:
            LocalCaptioner(LocalCaptionerConfig.base(str(path)))
        assert "\n" not in str(caught.value)

    refused(tmp_path / "none", "directory not found")
    refused(tmp_path, "captioner processor in .* cannot be loaded")
    path = tmp_path / "copy"
    path.mkdir()
    for file in directory.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    (path / "model.safetensors").unlink()
    refused(path, "no .safetensors weights")
    with pytest.raises(ValueError, match="max_new_tokens"):
        replace(LocalCaptionerConfig.base("x"), max_new_tokens=0)
