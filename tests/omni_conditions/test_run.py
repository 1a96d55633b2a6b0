"""The whole benchmark at debug size: data, phases that share their beginnings, rows, table, resuming."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omni_conditions.run import main, parser
from omni_conditions.training import flow_batches, load_weights, new_model, train_variant, write_data
from omni_conditions.variants import AUDIO, POSE, VARIANTS, Protocol

from omnihuman_core.checkpoint import load_safetensors
from omnihuman_train.config import RunConfig
from omnihuman_train.data.cached import Shards, shard_paths

SMALL = {"fit": 6, "pool": 4, "first_steps": 1, "phase_steps": 1, "batch_size": 2, "width": 64, "clips": 4}
PROTOCOL = Protocol(**SMALL, single_blocks=1, num_steps=2)


def command(source: Path, out: Path, *more: str) -> list[str]:
    values = {**SMALL, "single_blocks": 1, "num_steps": 2}
    options = [f"--{name.replace('phase_steps', 'steps').replace('_', '-')}={value}" for name, value in values.items()]
    return [f"--run={source}", f"--out={out}", f"--results={out / 'rows.jsonl'}", *options, *more]


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


def test_shares_of_the_pool_lose_their_flags_and_the_rest_keeps_them(source: Path, tmp_path: Path) -> None:
    whole = Shards(shard_paths(source / "latents" / "64x64"))
    passed = whole.tensors["has_audio"].nonzero()[:6, 0]
    for share, extra in ((0.0, 0), (0.25, 1), (0.5, 2), (1.0, 4)):
        data = Shards(shard_paths(write_data(source / "latents", tmp_path, PROTOCOL, share) / "64x64"))
        assert len(data) == 6 + extra
        assert data.tensors["has_audio"].tolist() == [True] * 6 + [False] * extra
        assert torch.equal(data.tensors["has_pose"][:6], whole.tensors["has_pose"][passed])
        assert not data.tensors["has_pose"][6:].any()
        assert torch.equal(data.tensors["latents"][:6], whole.tensors["latents"][passed])
        assert data.texts["caption"][:6] == [whole.texts["caption"][i] for i in passed.tolist()]
        # No clip twice.
        assert len({value.float().sum().item() for value in data.tensors["latents"]}) == 6 + extra
    with pytest.raises(ValueError, match="the protocol needs 60 and 4 others"):
        write_data(source / "latents", tmp_path / "more", Protocol(fit=60, pool=4), 1.0)


def test_batches_follow_the_phase_and_not_the_rules(source: Path, tmp_path: Path) -> None:
    data = write_data(source / "latents", tmp_path, PROTOCOL, 1.0)
    run = RunConfig(steps=1, batch_size=200)
    hears = flow_batches(data, run, AUDIO)(0)
    # Six of ten clips may keep their voice, half of the time.
    assert 0.2 < hears["keep"]["audio"].float().mean() < 0.4
    assert hears["pose_maps"] is None
    assert (hears["start"], hears["stop"], hears["motion_latents"]) == (0, 13, 0)
    shown = flow_batches(data, run, POSE)(0)["keep"]
    assert not shown["audio"].any()
    assert shown["pose"].any()


def test_a_phase_starts_from_the_one_before_it(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import omni_conditions.training as training

    seen: list[tuple[str, dict[str, torch.Tensor]]] = []
    honest = training.fit

    def watched(model: Any, *arguments: Any, title: str, **named: Any) -> Any:
        seen.append((title, {name: value.detach().clone() for name, value in model.named_parameters()}))
        return honest(model, *arguments, title=title, **named)

    monkeypatch.setattr(training, "fit", watched)
    latents = source / "latents"
    train_variant(VARIANTS["text_100"], 0, PROTOCOL, latents, tmp_path)
    last = train_variant(VARIANTS["iap_a_lt_p"], 0, PROTOCOL, latents, tmp_path)
    assert last == tmp_path / "seed0" / "text100-a50p0-a25p50"
    # Stage one and the audio phase are shared.
    assert [title for title, _ in seen] == ["stage1", "text100-a50p0", "text100-a50p0-a50p0", "text100-a50p0-a25p50"]
    starts = dict(seen)
    fresh = dict(new_model(PROTOCOL).named_parameters())
    assert all(torch.equal(value, fresh[name]) for name, value in starts["stage1"].items())
    for child, parent in (
        ("text100-a50p0", tmp_path / "stage1"),
        ("text100-a50p0-a50p0", tmp_path / "seed0" / "text100-a50p0"),
        ("text100-a50p0-a25p50", tmp_path / "seed0" / "text100-a50p0"),
    ):
        weights = load_safetensors(parent / "final.safetensors")
        assert all(torch.equal(value, weights[name]) for name, value in starts[child].items())
    end = dict(load_weights(PROTOCOL, last).named_parameters())
    assert any(not torch.equal(value, end[name]) for name, value in starts["text100-a50p0-a25p50"].items())
    # The audio encoder learns from the voice in the phase that has it.
    before, after = starts["text100-a50p0"], starts["text100-a50p0-a50p0"]
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("audio_encoder"))


def test_one_command_runs_everything_and_goes_on_where_it_stopped(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(source, tmp_path, "--variants", "text_25,ipa")) == 0
    first = rows(tmp_path)
    assert [row["variant"] for row in first] == ["truth", "text_25", "ipa"]
    assert all(len(row["per_clip"]["lip_sync_r"]) == 4 for row in first)
    assert first[1]["frechet_frames"] > 0
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert main(command(source, tmp_path, "--variants", "text_25,ipa,iap_a_gt_p")) == 0
    assert [row["variant"] for row in rows(tmp_path)] == ["truth", "text_25", "ipa", "iap_a_gt_p"]
    assert rows(tmp_path)[:3] == first
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    page = (tmp_path / "rows.md").read_text()
    assert all(f"| {VARIANTS[name].title} |" in page for name in ("text_25", "ipa", "iap_a_gt_p"))
    assert "audio before pose syncs better than pose before audio | " in page
    assert (tmp_path / "rows.svg").read_text().startswith("<svg")
    # Whatever was drawn before, another folder gets the same row.
    torch.manual_seed(99)
    assert main(command(source, tmp_path / "again", "--variants", "ipa")) == 0
    assert rows(tmp_path / "again") == [first[0], first[2]]
    (tmp_path / "rows.md").unlink()
    assert main(command(source, tmp_path, "--report")) == 0
    assert (tmp_path / "rows.md").read_text() == page

    assert main([*command(source, tmp_path), "--steps", "2"]) == 2
    assert "made by another protocol; choose another --out" in capsys.readouterr().err
    assert main(command(source, tmp_path, "--variants", "pai")) == 2
    assert "--variants: unknown ['pai']" in capsys.readouterr().err
    assert main(command(tmp_path / "nowhere", tmp_path, "--seeds", "2")) == 2
    assert "no VAE here" in capsys.readouterr().err


def test_every_field_of_the_protocol_is_an_option() -> None:
    arguments = vars(parser().parse_args(["--out", "x"]))
    assert {name: arguments[name] for name in vars(Protocol())} == vars(Protocol())
