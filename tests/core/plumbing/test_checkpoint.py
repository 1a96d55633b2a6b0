"""Weight files: whole or not at all, and refused with one clear line."""

from __future__ import annotations

import json
import os
import struct

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from omnihuman_core import checkpoint
from omnihuman_core.checkpoint import (
    CheckpointError,
    KeyReport,
    load_safetensors,
    load_state,
    read_metadata,
    save_safetensors,
)
from omnihuman_core.importing.streaming import write_stream


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.b = nn.Linear(4, 2)
        self.register_buffer("steps", torch.tensor(7))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def path(tmp_path, net):
    save_safetensors(net.state_dict(), tmp_path / "net.safetensors", {"step": "3"})
    return tmp_path / "net.safetensors"


def test_files_are_plain_safetensors(path, net):
    """Read by the library itself, bit for bit."""
    found = load_file(path)
    assert set(found) == set(net.state_dict())
    assert all(torch.equal(found[key], value) for key, value in net.state_dict().items())
    assert read_metadata(path) == {"step": "3"}
    assert all(torch.equal(value, found[key]) for key, value in load_safetensors(path).items())


def test_shared_memory_is_written_out(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    tensors = {"whole": whole, "same": whole, "row": whole[1], "turned": whole.T}
    save_safetensors(tensors, tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(found[key], value) for key, value in tensors.items())


def test_a_failed_save_leaves_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def fails_half_way(tensors, name, metadata):
        with open(name, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", fails_half_way)
    with pytest.raises(CheckpointError, match="cannot be written .*No space left"):
        save_safetensors({"a": torch.zeros(1)}, path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_an_interrupted_save_leaves_no_half_file(tmp_path, monkeypatch):
    def interrupted(tensors, name, metadata):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_safetensors({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert os.listdir(tmp_path) == []


def test_saving_where_there_is_no_folder(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_safetensors({"a": torch.zeros(1)}, tmp_path / "no" / "x.safetensors")


def stream(tensors, path):
    write_stream(path, tensors, tensors.items())


@pytest.mark.parametrize("save", [save_safetensors, stream])
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_weights_get_the_rights_of_any_new_file(tmp_path, monkeypatch, save, mask):
    before = os.umask(mask)
    try:
        # To ask for the mask is to change it, and other threads make files meanwhile.
        monkeypatch.setattr(os, "umask", None)
        (tmp_path / "plain").touch()
        save({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    finally:
        monkeypatch.undo()
        os.umask(before)
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("save", [save_safetensors, stream])
def test_a_name_may_be_as_long_as_the_file_system_has_it(tmp_path, save):
    path = tmp_path / ("x" * 243 + ".safetensors")
    save({"a": torch.ones(1)}, path)
    assert load_safetensors(path)["a"] == 1
    assert os.listdir(tmp_path) == [path.name]


def test_load_state_copies_everything(path, net):
    other = Net()
    assert load_state(other, path).exact
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in other.state_dict().items())


def test_meta_modules_are_filled_from_shards(tmp_path, net):
    state = net.state_dict()
    shards = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    save_safetensors({key: state[key] for key in state if key.startswith("a")}, shards[0])
    save_safetensors({key: state[key] for key in state if not key.startswith("a")}, shards[1])
    with torch.device("meta"):
        other = Net()
    load_state(other, shards, dtype=torch.bfloat16)
    for key, value in other.state_dict().items():
        assert value.device.type == "cpu"
        expected = state[key].bfloat16() if state[key].is_floating_point() else state[key]
        assert torch.equal(value, expected)
        assert value.dtype == expected.dtype
    assert all(parameter.requires_grad for parameter in other.parameters())


def test_a_module_keeps_its_dtype_unless_told(path):
    assert load_state(half := Net().half(), path).exact
    assert half.a.weight.dtype == torch.float16
    load_state(half, path, dtype=torch.float64)
    assert half.a.weight.dtype == torch.float64


def test_training_after_loading_does_not_write_to_the_file(path):
    before = path.read_bytes()
    with torch.device("meta"):
        other = Net()
    load_state(other, path)
    with torch.no_grad():
        other.a.weight.add_(1)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("a.weight"), "1 missing .a.weight."),
        (lambda s: s.update({"c.weight": torch.zeros(1)}), "1 unexpected .c.weight."),
        (lambda s: s.update({"a.weight": torch.zeros(4, 5)}), r"a.weight has shape \(4, 5\) in the file.*\(4, 3\)"),
    ],
)
def test_strict_loading_names_the_key_and_touches_nothing(tmp_path, net, change, message):
    state = dict(net.state_dict())
    change(state)
    save_safetensors(state, tmp_path / "x.safetensors")
    other = Net()
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as caught:
        load_state(other, tmp_path / "x.safetensors")
    assert len(str(caught.value).splitlines()) == 1
    assert str(tmp_path / "x.safetensors") in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


def test_loose_loading_reports_and_loads_the_rest(tmp_path, net):
    state = dict(net.state_dict()) | {"a.weight": torch.zeros(4, 5), "c": torch.zeros(1)}
    del state["b.bias"]
    save_safetensors(state, tmp_path / "x.safetensors")
    other = Net()
    kept = other.a.weight.clone()
    report = load_state(other, tmp_path / "x.safetensors", strict=False)
    assert (report.missing, report.unexpected) == (("b.bias",), ("c",))
    assert [(m.key, m.expected, m.found) for m in report.mismatched] == [("a.weight", (4, 3), (4, 5))]
    assert torch.equal(other.a.weight, kept)
    assert torch.equal(other.b.weight, net.b.weight)


def test_long_reports_are_cut():
    keys = tuple(f"k{i}" for i in range(50))
    assert str(KeyReport(missing=keys, unexpected=(), mismatched=())) == "50 missing (k0, k1, k2, ...)"


def test_a_key_in_two_shards_is_refused(tmp_path, path, net):
    save_safetensors({"a.bias": torch.zeros(4)}, tmp_path / "again.safetensors")
    with pytest.raises(CheckpointError, match="again.safetensors: key 'a.bias' is in an earlier shard"):
        load_state(net, [path, tmp_path / "again.safetensors"])


def header(table: dict[str, object], body: bytes = b"") -> bytes:
    text = json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + body


FAULTS = {
    "empty": lambda data: b"",
    "half a header": lambda data: data[:20],
    "half the tensors": lambda data: data[:-5],
    "trailing bytes": lambda data: data + b"more",
    "huge header length": lambda data: struct.pack("<Q", 2**62) + data[8:],
    "not json": lambda data: struct.pack("<Q", 8) + b"not json",
    "offsets past the end": lambda data: header(
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"1234"
    ),
    "a pickle": lambda data: b"PK\x03\x04" + b"archive/data.pkl" * 20,
    "text": lambda data: b"version https://git-lfs.github.com/spec/v1\n",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_files(path, net, fault):
    path.write_bytes(FAULTS[fault](path.read_bytes()))
    for load in (lambda: load_state(net, path), lambda: load_safetensors(path), lambda: read_metadata(path)):
        with pytest.raises(CheckpointError, match="truncated or not a safetensors file") as caught:
            load()
        assert str(caught.value).startswith(str(path))
        assert len(str(caught.value).splitlines()) == 1


def test_missing_file(tmp_path, net):
    with pytest.raises(CheckpointError, match="no such weight file"):
        load_state(net, tmp_path / "nothing.safetensors")
    with pytest.raises(CheckpointError, match="no such weight file"):
        load_state(net, tmp_path)
