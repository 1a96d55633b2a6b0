"""Manifests: edited by people, so every mistake is one line that names file, line and key."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from omnihuman_train.data.manifest import SampleRecord, read_manifest, write_manifest

from .toy import record


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_what_is_written_is_read_and_the_bytes_depend_on_the_records_alone(tmp_path: Path) -> None:
    records = [record(i) for i in range(5)]
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write_manifest(first, records)
    assert read_manifest(first) == records
    write_manifest(second, read_manifest(first))
    assert first.read_bytes() == second.read_bytes()


def test_what_others_note_in_a_line_is_left_alone(tmp_path: Path) -> None:
    assert read_manifest(write(tmp_path / "m.jsonl", {**asdict(record(1)), "score": 3})) == [record(1)]


@pytest.mark.parametrize("name", [field.name for field in fields(SampleRecord)])
def test_a_missing_key_is_named_with_its_line(tmp_path: Path, name: str) -> None:
    row = {key: value for key, value in asdict(record(1)).items() if key != name}
    with pytest.raises(ValueError, match=rf"m\.jsonl line 2: missing key '{name}'.*; add it or pack the clips again$"):
        read_manifest(write(tmp_path / "m.jsonl", asdict(record(0)), row))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"has_audio": 1}, "has_audio must be bool, got 1"),
        ({"frames": True}, "frames must be int, got True"),
        ({"frames": 2.5}, "frames must be int, got 2.5"),
        ({"frames": 0}, "must be positive"),
        ({"fps": "25"}, "fps must be float, got '25'"),
        ({"fps": 0}, "must be positive"),
        ({"fps": float("nan")}, "must be positive"),
        ({"start": float("inf")}, "start must be finite"),
        ({"key": "../../etc/passwd"}, "key must be 40 hex digits"),
        ({"licence": ""}, "licence is empty"),
    ],
)
def test_a_value_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_manifest(write(tmp_path / "m.jsonl", {**asdict(record(1)), **change}))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no sample"),
        (["{"], "line 1: damaged, no JSON"),
        (["[" * 100_000], "line 1: damaged, no JSON"),
        (["[1]"], "must be a JSON object, got list"),
        ([asdict(record(1)), asdict(record(1))], "is there twice; take one line out"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_manifest(write(tmp_path / "m.jsonl", *rows))


def test_a_missing_manifest_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not found; this is no data set"):
        read_manifest(tmp_path / "m.jsonl")
