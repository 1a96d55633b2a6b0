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
    with pytest.raises(PluginError, match="two packages register the video_vae plugin 'newcomer'.*uninstall one"):
        plugin("video_vae", "newcomer")


@pytest.mark.parametrize("target", ["no_such_module_here:VAE", "omnihuman_core.testing.fakes:NoSuchClass"])
def test_a_plugin_that_cannot_be_imported(tmp_path, monkeypatch, target):
    monkeypatch.syspath_prepend(write_distribution(tmp_path, {"video_vae": {"broken": target}}))
    with pytest.raises(PluginError, match=f"'broken' .{target}. cannot be imported"):
        plugin("video_vae", "broken")


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
