"""The doctor sees what is there, what is missing and what is broken, on any machine."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from omnihuman_infer.cli import main
from omnihuman_infer.doctor import examine

from .models import save_toy


def test_a_whole_model_has_no_fault(toy_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(toy_dir)]) == 0
    text = capsys.readouterr().out
    for words in ("toy 1", "backbone         mmdit", "written by omnihuman-core 0.1.0", "torch ", "precision float32"):
        assert words in text
    assert "eager    usable, the default" in text
    assert "missing" not in text


def test_the_machine_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "device " in capsys.readouterr().out


def test_a_shipped_model_goes_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "tiny"]) == 0
    assert capsys.readouterr().out.startswith("tiny ")
    assert main(["doctor", "huge"]) == 2
    assert "shipped model (tiny)" in capsys.readouterr().err


def test_memory_is_that_of_the_weights(toy_dir: Path) -> None:
    from omnihuman_core.checkpoint import read_layout

    count = sum(value.numel() for file in toy_dir.rglob("*.safetensors") for value in read_layout(file).values())
    line = next(line for line in examine(toy_dir).text.splitlines() if "weights at that precision" in line)
    assert float(line.split(":")[1].split()[0]) == pytest.approx(count * 4 / 1e9, abs=0.006)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    report = examine(save_toy(tmp_path / "mute", leave_out=("audio_extractor", "audio_encoder")))
    assert "audio_encoder    missing: the model takes no sound" in report.text
    assert report.faults == ()
    report = examine(save_toy(tmp_path / "blind", leave_out=("vae",)))
    (fault,) = report.faults
    assert "vae is missing" in fault


def damage(folder: Path, kind: str) -> None:
    weights = folder / "backbone" / "model.safetensors"
    config = folder / "backbone" / "config.toml"
    if kind == "lost":
        weights.unlink()
    elif kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif kind == "shape":
        config.write_text(config.read_text().replace("hidden_size = 16", "hidden_size = 32").replace(
            "rope_dims = [4, 6, 6]", "rope_dims = [8, 12, 12]"))  # fmt: skip
    elif kind == "config":
        config.write_text(config.read_text() + "wings = 2\n")
    elif kind == "index":
        index = folder / "model.toml"
        index.write_text(index.read_text().replace("omnihuman.backbone.v1", "omnihuman.backbone.v2"))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("lost", "no such weight file"),
        ("truncated", "truncated or not a safetensors file"),
        ("shape", "must be"),
        ("config", "unknown key 'wings'"),
        ("index", "version 2 of the contract"),
    ],
)
def test_broken_parts_are_named(
    toy_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, message: str
) -> None:
    folder = shutil.copytree(toy_dir, tmp_path / "broken")
    damage(folder, kind)
    assert main(["doctor", str(folder)]) == 1
    *_, title, fault = capsys.readouterr().out.splitlines()
    assert title == "faults"
    assert message in fault
    assert "broken" in fault


def test_published_weights_are_recognised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("diffusers")
    from tests.public_models import save_hunyuan_transformer

    save_hunyuan_transformer(tmp_path / "public")
    assert main(["doctor", str(tmp_path / "public")]) == 0
    assert "omnihuman-infer convert makes a model directory of them" in capsys.readouterr().out
    assert main(["doctor", str(tmp_path)]) == 1
    assert "holds no checkpoint that is known" in capsys.readouterr().out
    assert main(["doctor", str(tmp_path / "nowhere")]) == 2


def test_gpus_as_the_driver_reports_them(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(free=60e9, total=80e9),
        nvmlDeviceGetName=lambda handle: "Some GPU",
    )
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    assert "GPU 0: Some GPU, 60.0 of 80.0 GB free" in examine(None).text


def test_without_a_gpu_or_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "no GPU is seen" in examine(None).text
