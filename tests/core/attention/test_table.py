"""Tables of times are read strictly and written whole."""

from __future__ import annotations

import json
import os
from dataclasses import asdict

import pytest

from omnihuman_core.ops.attention_table import (
    TableError,
    known_rows,
    merge,
    read_table,
    user_table,
    write_table,
)

from .fakes import row


def test_what_is_written_is_read_back(tmp_path):
    rows = (row(), row("eager", 0.25, masked=True, direction="training"))
    path = tmp_path / "deep" / "attention.json"
    write_table(path, rows)
    assert read_table(path) == rows
    assert os.listdir(path.parent) == ["attention.json"]


def test_new_times_replace_those_of_their_device_and_dtype_alone():
    old = [row("sdpa"), row("eager", dtype="bfloat16"), row("flex", device="another")]
    new = [row("eager", 0.5)]
    assert merge(old, new) == (old[1], old[2], new[0])


def test_the_shipped_table_is_read_and_the_users_comes_first(home):
    shipped = known_rows()
    assert user_table() == home / ".omnihuman" / "attention.json"
    write_table(user_table(), [row()])
    assert known_rows() == merge(shipped, [row()])


def test_an_account_without_a_home_directory_has_the_shipped_table(monkeypatch):
    shipped = known_rows()
    monkeypatch.undo()
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    with pytest.raises(RuntimeError, match="home directory"):
        user_table()
    assert known_rows() == shipped


def test_a_home_directory_of_somebody_else_is_not_looked_into(monkeypatch):
    shipped = known_rows()

    def denied(path, **_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.exists", denied)
    assert known_rows() == shipped


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no JSON"),
        ("{", "is no JSON"),
        ("[]", "no table of attention times in format 1"),
        ('{"format": 2, "rows": []}', "no table of attention times in format 1"),
        ('{"format": 1}', "missing key 'rows'"),
        ('{"format": 1, "rows": 3}', "rows"),
        ('{"format": 1, "rows": [], "more": 1}', "unknown key 'more'"),
    ],
)
def test_a_broken_file_is_named_with_the_fix(tmp_path, text, message):
    path = tmp_path / "attention.json"
    path.write_text(text)
    with pytest.raises(TableError) as caught:
        read_table(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert message in text
    assert "delete it" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seconds", 0.0),
        ("seconds", -1.0),
        ("seconds", float("inf")),
        ("seconds", "fast"),
        ("length", 0),
        ("head_dim", 1.5),
        ("masked", "no"),
        ("direction", "sideways"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, field, value):
    path = tmp_path / "attention.json"
    path.write_text(json.dumps({"format": 1, "rows": [asdict(row()), asdict(row()) | {field: value}]}))
    with pytest.raises(TableError, match=field):
        read_table(path)


def test_bytes_and_folders_are_no_table(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TableError, match="is no text"):
        read_table(tmp_path / "binary")
    with pytest.raises(TableError, match="cannot be read"):
        read_table(tmp_path)
    with pytest.raises(TableError, match="cannot be read"):
        read_table(tmp_path / "nowhere")


def test_a_name_may_be_as_long_as_the_file_system_has_it(tmp_path):
    path = tmp_path / ("x" * 250 + ".json")
    write_table(path, [row()])
    assert read_table(path) == (row(),)


def test_a_write_that_fails_leaves_the_old_table(tmp_path, monkeypatch):
    path = tmp_path / "attention.json"
    write_table(path, [row()])

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(TableError, match="cannot be written .No space left on device.; choose another place"):
        write_table(path, [row("eager")])
    monkeypatch.undo()
    assert read_table(path) == (row(),)
    assert os.listdir(tmp_path) == ["attention.json"]
