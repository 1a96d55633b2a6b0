"""The file of the table of attention times."""

import os
import subprocess
import sys

import pytest

from omnihuman_core.ops.attention_table import check_place, write_table


@pytest.mark.parametrize(("mask", "rights"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_table_has_the_rights_of_any_new_file(tmp_path, mask, rights):
    before = os.umask(mask)
    try:
        check_place(tmp_path / "attention.json")
        write_table(tmp_path / "attention.json", ())
    finally:
        os.umask(before)
    assert os.stat(tmp_path / "attention.json").st_mode & 0o777 == rights
    assert os.listdir(tmp_path) == ["attention.json"]


def test_ops_import_without_safetensors():
    """Who checks kernels on a GPU may not have it."""
    code = "import sys; sys.modules['safetensors'] = None; import omnihuman_core.ops"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
