"""A VAE trained on own clips, from video files to encoded clips; what its latents are measured on, and when."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from omnihuman_core.checkpoint import load_safetensors
from omnihuman_core.config import from_table, read_toml
from omnihuman_core.model_dir import load_component, read_index
from omnihuman_train import latent_statistics as module
from omnihuman_train import vae_run
from omnihuman_train.cli import main
from omnihuman_train.data.clips import from_bytes, render_clips
from omnihuman_train.data.encoder import open_component
from omnihuman_train.data.pack_characters import pack_characters
from omnihuman_train.data.plan import BatchConfig
from omnihuman_train.data.shard_set import ShardSet
from omnihuman_train.data.stream import StreamConfig
from omnihuman_train.data.video_stream import drawn_clips
from omnihuman_train.latent_statistics import latent_statistics, rendered_clips
from omnihuman_train.recipes.vae import small
from omnihuman_train.resuming import checkpoints
from omnihuman_train.vae_config import VAETrainConfig, check

DRAWN = small().clips


def film(path: Path, *, frames: int, size: tuple[int, int], seed: int) -> None:
    """A video of a moving pattern."""
    import av

    generator = np.random.default_rng(seed)
    picture = np.kron(generator.integers(0, 256, (size[0] // 8, size[1] // 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"crf": "10", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            moved = np.ascontiguousarray(np.roll(picture, 2 * number, axis=1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three films, two wide ones and a tall one, packed as two samples of 9 frames each."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "films").mkdir()
    for number, size in enumerate([(64, 96), (64, 96), (96, 64)]):
        film(folder / "films" / f"{number}.mp4", frames=20, size=size, seed=number)
    pack = ["data", "pack", "--clips", str(folder / "films"), "--out", str(folder / "clips"), "--licence", "own"]
    assert main([*pack, "--frames", "9", "--area", "32x48"]) == 0
    assert {tuple(record.bucket) for record in ShardSet(folder / "clips").records} == {(9, 32, 48), (9, 48, 32)}
    return folder / "clips"


def command(data: Path, out: Path, *more: str) -> list[str]:
    chosen = ["--config", "omnihuman_train.recipes.vae:small", "--set", "clips=none", "--set", f"data={data}"]
    return ["run", *chosen, "--set", "loss.perceptual_weight=0", "--out", str(out), *more]


def test_a_vae_learns_own_clips_and_encodes_them(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, states = tmp_path / "vae", tmp_path / "states"
    assert main(command(data, run, "--trial", "3")) == 0
    config = from_table(VAETrainConfig, read_toml(run / "config.toml"))
    assert (config.clips, config.data, config.run.steps) == (None, str(data), 3)
    assert not (run / "clips").exists()
    # Goes on from the three steps to the fifth.
    assert main(command(data, run, "--trial", "5", "--parts", "vae")) == 0
    assert checkpoints(run / "vae" / "checkpoints")[-1].name == "step_00000005"
    assert list(read_index(run / "model").components) == ["vae"]
    final, vae = load_safetensors(run / "vae" / "final.safetensors"), load_component(run / "model", "vae")
    assert all(torch.equal(vae.state_dict()[name], value.bfloat16().float()) for name, value in final.items())
    # The constants do what they are for on the clips that they were measured on.
    vae.load_state_dict(final)
    videos = [from_bytes(clip[None]) for clip in drawn_clips(ShardSet(data), 9, 0)]
    with torch.no_grad():
        latents = torch.cat([vae.encode(video)[0].flatten(1) for video in videos], 1)  # (C, N)
    torch.testing.assert_close(latents.mean(1), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std(1), torch.ones(16), atol=1e-4, rtol=0)

    parts = ["--vae", str(run / "model"), "--audio", "log_mel:tiny", "--text", "text_bytes:tiny"]
    assert main(["data", "cache", str(data), "--out", str(states), *parts]) == 0
    assert main(["data", "check", str(states), "--decode"]) == 0
    assert len(ShardSet(states)) == len(ShardSet(data)) == 6
    capsys.readouterr()
    assert main(command(data, run, "--parts", "render")) == 2
    said = capsys.readouterr().err
    assert said.startswith("omnihuman-train: part 'render' draws clips, but this run trains on packed ones")
    assert said.count("\n") == 1


def test_a_stopped_run_equals_one_that_never_stopped(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(small(), clips=None, data=str(data))
    recipe = replace(
        recipe,
        loss=replace(recipe.loss, perceptual_weight=0.0),
        run=replace(recipe.run, steps=4, checkpoint_minutes=0.0, log_every=1),
        discriminator=replace(recipe.discriminator, start=0, adversarial_start=1),
    )
    vae_run.run_vae(recipe, tmp_path / "whole")
    build = vae_run.VideoStream

    class Cut(build):  # type: ignore[misc, valid-type]
        def __call__(self, step: int) -> dict[str, Any]:
            if step == 2:
                raise ConnectionError("power cut")
            return super().__call__(step)  # type: ignore[no-any-return]

    monkeypatch.setattr(vae_run, "VideoStream", Cut)
    with pytest.raises(ConnectionError):
        vae_run.run_vae(recipe, tmp_path / "parts")
    monkeypatch.setattr(vae_run, "VideoStream", build)
    vae_run.run_vae(recipe, tmp_path / "parts")
    mine, theirs = (load_safetensors(tmp_path / name / "vae" / "final.safetensors") for name in ("parts", "whole"))
    assert all(torch.equal(mine[name], value) for name, value in theirs.items())


def test_weights_are_there_before_the_latents_are_measured(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*arguments: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(vae_run, "latent_statistics", stopped)
    run = command(data, tmp_path, "--trial", "1")
    assert main(run) == 130
    final = tmp_path / "vae" / "final.safetensors"
    trained = load_safetensors(final)
    assert not {"latents_mean", "latents_std"} & set(trained)
    monkeypatch.undo()
    assert main(run) == 0
    whole = load_safetensors(final)
    assert set(whole) == {*trained, "latents_mean", "latents_std"}
    assert all(torch.equal(whole[name], value) for name, value in trained.items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_latents_are_measured_as_whole_clips_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Any
) -> None:
    assert DRAWN is not None
    render_clips(replace(DRAWN, clips=(3, 2), num_frames=17), tmp_path, progress=lambda count: None)
    torch.manual_seed(0)
    vae = open_component("vae", "causal:tiny", "cpu")
    with torch.no_grad():
        means = [vae.posterior(from_bytes(clip[None])).mean.movedim(1, -1) for clip in rendered_clips(tmp_path)]
        found = torch.cat([mean.flatten(0, -2) for mean in means])
    want = found.mean(0), found.std(0)
    got = latent_statistics(vae, rendered_clips(tmp_path), precision=precision)
    if precision == "fp32":
        assert torch.equal(got[0], want[0])
        assert torch.equal(got[1], want[1])
    torch.testing.assert_close(got, want, atol=0.02, rtol=0.02)
    # Pieces of five and of four frames come to the same, whatever constants the VAE has.
    monkeypatch.setattr(module, "_PIECE_PIXELS", 4 * 32 * 32)
    vae.set_latent_statistics(torch.full((16,), 0.5), torch.full((16,), 3.0))
    pieces = latent_statistics(vae, rendered_clips(tmp_path))
    torch.testing.assert_close(pieces, want, atol=1e-5, rtol=1e-5)


def test_pieces_are_short_and_frames_that_no_latent_covers_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = open_component("vae", "causal:tiny", "cpu").latent_spec
    monkeypatch.setattr(module, "_PIECE_PIXELS", 8 * 32 * 32)
    clip = torch.arange(24)[None, :, None, None].expand(3, 24, 32, 32)
    pieces = list(module._pieces(clip, spec))
    assert [piece.shape[1] for piece in pieces] == [9, 8, 4]
    assert torch.cat(pieces, 1).equal(clip[:, :21])
    # A picture too large for a piece still goes in by one latent frame.
    big = list(module._pieces(torch.zeros(3, 9, 64, 64, dtype=torch.uint8), spec))
    assert [piece.shape[1] for piece in big] == [5, 4]
    assert [piece.shape[1] for piece in module._pieces(torch.zeros(3, 1, 64, 64), spec)] == [1]


def test_no_clips_to_measure_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="no clip can be read to measure the latents on"):
        latent_statistics(open_component("vae", "causal:tiny", "cpu"), [])


def test_runs_on_data_that_cannot_be_are_refused_before_any_work(tmp_path: Path, data: Path) -> None:
    recipe = replace(small(), clips=None, data=str(data))
    check(recipe)
    with pytest.raises(ValueError, match="frames is 13, but .* holds clips of 9 frames"):
        check(replace(recipe, frames=13))
    with pytest.raises(ValueError, match="data: nowhere does not exist; make it with `omnihuman-train data pack`"):
        check(replace(recipe, data="nowhere"))
    with pytest.raises(ValueError, match="no sample has the licence 'MIT'"):
        check(replace(recipe, stream=replace(recipe.stream, licences=("MIT",))))
    odd = tmp_path / "odd"
    pack_characters(odd, count=1, frames=9, sizes=[(36, 32)], shard_size=1, progress=lambda count: None)
    with pytest.raises(ValueError, match=r"data: .*odd: the VAE takes no clips of .* multiple of 8, got 36"):
        vae_run.run_vae(replace(recipe, data=str(odd)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "x"}, "clips and data are both set, data to x; .* set clips=none"),
        ({"clips": None}, "neither clips nor data is set"),
        ({"stream": StreamConfig(batch=BatchConfig(), threads=2)}, "stream says how data is read"),
        (
            {"clips": None, "data": "x", "stream": StreamConfig(batch=BatchConfig(token_budget=9))},
            r"set run\.batch_size",
        ),
    ],
)
def test_clips_come_from_one_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(small(), **change)
