"""Shards and index: plain tars that the webdataset library reads; nothing in them can reach out of them."""

import hashlib
import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest

from omnihuman_train.data.interop import decode_members, open_webdataset
from omnihuman_train.data.shard_set import ShardSet
from omnihuman_train.data.shards import (
    INDEX,
    MEMBERS,
    BrokenShardError,
    read_index,
    scan_tar,
    write_tar,
)

from .toy import LONG, SHORT, key_of, states, write_states

KEY = key_of(0)


def tar_with(path: Path, *infos: tarfile.TarInfo, data: bytes = b"x" * 700, format: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for info in infos:
            info.size = len(data) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return path


def info(name: str, **values: Any) -> tarfile.TarInfo:
    result = tarfile.TarInfo(name)
    for field, value in values.items():
        setattr(result, field, value)
    return result


def test_tarfile_and_the_index_see_the_same_members(tmp_path: Path) -> None:
    samples = [(key_of(i), {"json": b"{}" * i, "flac": bytes(i)}) for i in range(1, 4)]
    entry = write_tar(tmp_path / "shard-000000.tar", samples)
    data = (tmp_path / "shard-000000.tar").read_bytes()
    assert entry.size == len(data)
    assert entry.sha256 == hashlib.sha256(data).hexdigest()
    with tarfile.open(tmp_path / "shard-000000.tar") as tar:
        names = [f"{key}.{name}" for key, members in samples for name in members]
        assert tar.getnames() == names
        for key, members in samples:
            for name, value in members.items():
                span = entry.samples[key][name]
                file = tar.extractfile(f"{key}.{name}")
                assert file is not None
                assert file.read() == value == data[span.offset : span.offset + span.size]
    assert scan_tar(tmp_path / "shard-000000.tar").keys() == set(names)


def test_equal_samples_give_equal_bytes_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    samples = [(KEY, {"json": b"{}"})]
    write_tar(tmp_path / "a.tar", samples)
    write_tar(tmp_path / "b.tar", samples)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()

    def full_disk() -> Any:
        yield from samples
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_tar(tmp_path / "c.tar", full_disk())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "b.tar"]


@pytest.mark.parametrize("name", [f"{KEY}.pkl", f"{KEY}.pyd", f"{KEY}.pickle", "readme.json", f"a/{KEY}.json", KEY])
def test_only_known_members_are_written(tmp_path: Path, name: str) -> None:
    key, _, member = name.partition(".")
    with pytest.raises(ValueError, match="is not allowed"):
        write_tar(tmp_path / "a.tar", [(key, {member: b""})])


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (info(f"{KEY}.json", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is no plain file"),
        (info(f"{KEY}.json", type=tarfile.LNKTYPE, linkname="other"), "is no plain file"),
        (info(f"{KEY}.json", type=tarfile.CHRTYPE), "is no plain file"),
        (info(f"{KEY}.json", type=tarfile.FIFOTYPE), "is no plain file"),
        (info("folder", type=tarfile.DIRTYPE), "is no plain file"),
        (info(f"../{KEY}.json"), "is not allowed"),
        (info(f"/{KEY}.json"), "is not allowed"),
        (info(f"folder/{KEY}.json"), "is not allowed"),
        (info(f"{KEY}.pkl"), "is not allowed"),
        (info(f"{KEY}.pyd"), "is not allowed"),
        (info(f"{KEY}.cls"), "is not allowed"),
    ],
)
def test_links_pickles_and_paths_are_refused(tmp_path: Path, member: tarfile.TarInfo, message: str) -> None:
    path = tar_with(tmp_path / "shard.tar", member, data=pickle.dumps(print))
    with pytest.raises(BrokenShardError, match=rf"shard\.tar: member .*{message}"):
        scan_tar(path)


def test_large_members_doubles_and_extended_headers_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BrokenShardError, match="is there twice"):
        scan_tar(tar_with(tmp_path / "a.tar", info(f"{KEY}.json"), info(f"{KEY}.json")))
    pax = info(f"{KEY}.json", pax_headers={"path": "../../evil"})
    with pytest.raises(BrokenShardError, match="is not allowed|is no plain file"):
        scan_tar(tar_with(tmp_path / "b.tar", pax, format=tarfile.PAX_FORMAT))
    comment = info(f"{KEY}.json", pax_headers={"comment": "hidden"})
    with pytest.raises(BrokenShardError, match="is no plain file"):
        scan_tar(tar_with(tmp_path / "d.tar", comment, format=tarfile.PAX_FORMAT))
    monkeypatch.setattr("omnihuman_train.data.shards.MEMBERS", {"json": 699})
    with pytest.raises(BrokenShardError, match="has 700 bytes, at most 699"):
        scan_tar(tar_with(tmp_path / "c.tar", info(f"{KEY}.json")))


def test_a_truncated_tar_is_named(tmp_path: Path) -> None:
    path = tar_with(tmp_path / "shard.tar", info(f"{KEY}.json"))
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(BrokenShardError, match=r"shard\.tar: damaged or truncated tar"):
        scan_tar(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_states(tmp_path / "data", [SHORT] * 6 + [LONG] * 3)


def change_index(folder: Path, line: int, change: Any) -> None:
    rows = [json.loads(row) for row in (folder / INDEX).read_text().splitlines()]
    change(rows[line])
    (folder / INDEX).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("line", "change", "message"),
    [
        (0, lambda row: row.update(format=2), "must be a header with format 1"),
        (0, lambda row: row.pop("kind"), "missing key 'kind'"),
        (0, lambda row: row.update(kind="pickles"), "kind must be 'clips' or 'states', got 'pickles'"),
        (0, lambda row: row.update(shards=9), "names 3 shards, its header 9; the file was cut"),
        (1, lambda row: row.pop("sha256"), "line 2: missing key 'sha256'"),
        (1, lambda row: row.update(sha256="abc"), "sha256 must be 64 hex digits"),
        (1, lambda row: row.update(name="../shard.tar"), "must be a plain file name"),
        (1, lambda row: row.update(name="pipe:rm -rf x.tar"), "must be a plain file name"),
        (1, lambda row: row["samples"][0][1]["json"].__setitem__(0, 10**9), "offset, size or sha256 cannot be"),
        (1, lambda row: row["samples"][0][1]["json"].__setitem__(1, -1), "offset, size or sha256 cannot be"),
        (1, lambda row: row["samples"][0][1].update(pkl=[512, 1, "0" * 64]), "is not allowed"),
        (1, lambda row: row["samples"][0].__setitem__(0, "../x"), "is not allowed"),
        (2, lambda row: row.update(name="shard-000000.tar"), "shard shard-000000.tar is there twice"),
        (1, lambda row: row.update(samples=3), "no row of an index"),
    ],
)
def test_an_index_that_cannot_be_is_refused(data: Path, line: int, change: Any, message: str) -> None:
    change_index(data, line, change)
    with pytest.raises(ValueError, match=message):
        read_index(data)


def test_samples_without_a_shard_and_licences_that_nobody_has_are_named(data: Path) -> None:
    with pytest.raises(ValueError, match="no sample has the licence 'MIT'; there are CC-BY-4.0, own"):
        ShardSet(data, licences=("MIT",))
    assert {record.licence for record in ShardSet(data, licences=("own",)).records} == {"own"}
    change_index(data, 1, lambda row: row["samples"].pop(0))
    with pytest.raises(ValueError, match=f"manifest.jsonl: sample {KEY} is in no shard"):
        ShardSet(data)


def test_a_missing_or_cut_shard_stops_with_its_name(data: Path) -> None:
    path = data / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BrokenShardError, match=r"shard-000001\.tar: has \d+ bytes, the index says \d+"):
        ShardSet(data)
    path.unlink()
    with pytest.raises(BrokenShardError, match=r"shard-000001\.tar: the shard is missing"):
        ShardSet(data)


def test_the_webdataset_library_reads_the_shards(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    webdataset = pytest.importorskip("webdataset")
    ours = ShardSet(data)
    # The library alone, without a line of ours.
    plain = list(webdataset.WebDataset([str(path) for path in sorted(data.glob("*.tar"))], shardshuffle=False))
    assert [sample["__key__"] for sample in plain] == [record.key for record in ours.records]
    for number, sample in enumerate(plain):
        members = {name for name in sample if not name.startswith("__")}
        assert members == ours.members(number).keys() <= MEMBERS.keys()
        assert all(sample[name] == ours.read(number, name, verify=True) for name in members)
    # And decoded by our names.
    for number, sample in enumerate(open_webdataset(data)):
        want = states(number, ours.records[number].bucket)
        assert sample["json"] == {}
        for name, tensors in want.items():
            assert all(sample[name][key].equal(value) for key, value in tensors.items())


def test_the_library_never_unpickles(tmp_path: Path) -> None:
    with pytest.raises(BrokenShardError, match="is not allowed"):
        decode_members({"__key__": KEY, "pyd": pickle.dumps(print)})
