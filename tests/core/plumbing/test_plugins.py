"""Plugins through real distribution metadata."""

from __future__ import annotations

import pytest

from omnihuman_core.contracts.ops import Ops
from omnihuman_core.plugins import (
    CONTRACT_VERSION,
    KINDS,
    PluginError,
    check_group,
    group,
    installed,
    plugin,
    resolve_ops,
)
from omnihuman_core.testing.fakes import FakeVAE
from omnihuman_core.testing.guard import assert_import_pure
from omnihuman_core.testing.registration import write_distribution

FAKE = "omnihuman_core.testing.fakes:FakeVAE"


def test_an_installed_plugin_is_found_by_name(tmp_path, monkeypatch):
    assert "newcomer" not in installed("video_vae")
    monkeypatch.syspath_prepend(write_distribution(tmp_path, {"video_vae": {"newcomer": FAKE}}, version="2.5"))
    assert plugin("video_vae", "newcomer") is FakeVAE
    assert installed("video_vae")["newcomer"].dist.version == "2.5"


def test_a_wrong_name_lists_the_installed_ones(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(write_distribution(tmp_path, {"video_vae": {"newcomer": FAKE}}))
    with pytest.raises(
        PluginError, match=r"unknown video_vae plugin 'causl'; installed are .*newcomer.*omnihuman.video_vae.v1"
    ):
        plugin("video_vae", "causl")


def test_two_claims_on_one_name(tmp_path, monkeypatch):
    for name, target in (("first", FAKE), ("second", "somewhere.else:VAE")):
        entries = {"video_vae": {"newcomer": target}}
        monkeypatch.syspath_prepend(write_distribution(tmp_path / name, entries, name=name))
    both = "somewhere.else:VAE of second and omnihuman_core.testing.fakes:FakeVAE of first"
    with pytest.raises(PluginError, match=f"two packages register the video_vae plugin 'newcomer' .{both}.; uninstall"):
        plugin("video_vae", "newcomer")


def test_a_quarrel_over_one_name_leaves_the_others(tmp_path, monkeypatch):
    for name in ("first", "second"):
        entries = {"video_vae": {"newcomer": f"{name}.vae:VAE"}}
        monkeypatch.syspath_prepend(write_distribution(tmp_path / name, entries, name=name))
    monkeypatch.syspath_prepend(write_distribution(tmp_path, {"video_vae": {"third": FAKE}}))
    assert plugin("video_vae", "third") is FakeVAE
    assert {"newcomer", "third"} <= set(installed("video_vae"))


def test_one_object_that_two_packages_register_is_no_quarrel(tmp_path, monkeypatch):
    for name in ("first", "second"):
        entries = {"video_vae": {"newcomer": FAKE}}
        monkeypatch.syspath_prepend(write_distribution(tmp_path / name, entries, name=name))
    assert plugin("video_vae", "newcomer") is FakeVAE


def test_a_plugin_for_another_version_of_the_contract(tmp_path, monkeypatch):
    folder = write_distribution(tmp_path, {"video_vae": {"older": FAKE, "newcomer": FAKE}})
    (entries,) = folder.glob("*.dist-info/entry_points.txt")
    entries.write_text(entries.read_text().replace("video_vae.v1", "video_vae.v2"))
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(
        PluginError, match=r"'newcomer' is registered for version 2 .* this omnihuman-core speaks version 1"
    ):
        plugin("video_vae", "newcomer")


@pytest.mark.parametrize("target", ["no_such_module_here:VAE", "omnihuman_core.testing.fakes:NoSuchClass"])
def test_a_plugin_that_cannot_be_imported(tmp_path, monkeypatch, target):
    monkeypatch.syspath_prepend(write_distribution(tmp_path, {"video_vae": {"broken": target}}))
    with pytest.raises(PluginError, match=f"'broken' .{target}. cannot be imported"):
        plugin("video_vae", "broken")


@pytest.mark.parametrize("line", ["raise OSError('no libcuda.so:\\nask an expert')", "def (:", "1 / 0", "{}['key']"])
def test_a_plugin_whose_module_fails(tmp_path, monkeypatch, line):
    (tmp_path / "fails_at_import.py").write_text(f"{line}\n")
    monkeypatch.syspath_prepend(write_distribution(tmp_path, {"video_vae": {"broken": "fails_at_import:VAE"}}))
    with pytest.raises(PluginError, match=r"'broken' .fails_at_import:VAE. cannot be imported: \w+Error: ") as caught:
        plugin("video_vae", "broken")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_groups_carry_the_version():
    assert {group(kind) for kind in KINDS} == {f"omnihuman.{kind}.v{CONTRACT_VERSION}" for kind in KINDS}
    with pytest.raises(PluginError, match="unknown kind of plugin 'vae'"):
        group("vae")


def test_check_group():
    check_group("omnihuman.video_vae.v1", "video_vae")
    with pytest.raises(PluginError, match="version 2 of the contract, this omnihuman-core speaks version 1"):
        check_group("omnihuman.video_vae.v2", "video_vae")
    with pytest.raises(PluginError, match="group must be 'omnihuman.video_vae.v1', got 'omnihuman.backbone.v1'"):
        check_group("omnihuman.backbone.v1", "video_vae")


def test_eager_ops():
    assert isinstance(resolve_ops(), Ops)


def test_ops_must_be_a_bundle(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(write_distribution(tmp_path, {"ops": {"dict": "builtins:dict"}}))
    with pytest.raises(PluginError, match="must return omnihuman_core.contracts.Ops, got dict"):
        resolve_ops("dict")


def test_core_imports_nothing_heavy():
    """Neither the contracts nor the plumbing need a test framework, a kernel language or a media library."""
    modules = ["omnihuman_core", "omnihuman_core.contracts", "omnihuman_core.model_dir", "omnihuman_core.testing"]
    modules += ["omnihuman_core.mmdit", "omnihuman_core.testing.fake_encoders", "omnihuman_core.testing.guard"]
    assert_import_pure(
        modules, ("triton", "flash_attn", "transformers", "diffusers", "av", "cv2", "pytest", "hypothesis")
    )


def test_the_guard_sees_what_comes_along(tmp_path, monkeypatch):
    (tmp_path / "greedy.py").write_text("import sqlite3\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(AssertionError, match="importing greedy pulls sqlite3"):
        assert_import_pure(["greedy"], ["sqlite3"])
    with pytest.raises(AssertionError, match="importing no_such_module_here failed"):
        assert_import_pure(["no_such_module_here"])
