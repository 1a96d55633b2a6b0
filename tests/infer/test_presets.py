"""Model directories are looked over before torch is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from omnihuman_infer import presets
from omnihuman_infer.presets import check_whole, model_directory
from omnihuman_infer.request import RequestError


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "vae" / "model.safetensors"
    path.parent.mkdir()
    save_file({"a": torch.ones(3, 5), "b": torch.ones(2, dtype=torch.bfloat16)}, path, metadata={"k": "v"})
    (tmp_path / "model.toml").write_text("")
    return path


def test_a_whole_file_passes(weights: Path) -> None:
    check_whole(weights)
    assert model_directory(str(weights.parents[1])) == weights.parents[1]


@pytest.mark.parametrize("kept", [0, 4, 8, 40, -1])
def test_a_cut_file_is_named(weights: Path, kept: int) -> None:
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(RequestError, match=r"vae/model\.safetensors: truncated or not a safetensors file"):
        model_directory(str(weights.parents[1]))


def with_header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


CONTENTS = {
    "text": b"hello",
    "no table": with_header(b"[]"),
    "nothing": bytes(100),
    "longer": b"more",
    "deep": with_header(b"[" * 200_000),
    "no end": with_header(b'{"a": {"data_offsets": []}}'),
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_another_file_is_named(weights: Path, content: bytes) -> None:
    weights.write_bytes(weights.read_bytes() + content if content == b"more" else content)
    with pytest.raises(RequestError, match="truncated or not a safetensors file"):
        check_whole(weights)


def test_a_header_that_no_reader_takes_is_not_read(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    length = 100_000_001
    with weights.open("wb") as file:
        file.write(length.to_bytes(8, "little"))
        # Zeros that take no room on the disk.
        file.truncate(length + 100)
    # The limit is that of the library itself.
    with pytest.raises(SafetensorError, match="(?i)header ?too ?large"):
        safe_open(weights, framework="pt")
    monkeypatch.setattr(presets.json, "loads", lambda _: pytest.fail("was parsed"))
    with pytest.raises(RequestError, match=r"vae/model\.safetensors: truncated or not a safetensors file"):
        model_directory(str(weights.parents[1]))
