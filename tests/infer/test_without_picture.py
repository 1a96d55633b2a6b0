"""Without a picture the prompt says who is shown, and the reference is that of samples which drop it in training."""

import dataclasses
from pathlib import Path

import av
import pytest
import torch

from omnihuman_core.dropout import null_latents
from omnihuman_infer import GenerateRequest, OmniHumanPipeline, RequestError
from omnihuman_infer.cli import main

from .test_pose import write_pose


@pytest.fixture
def blind(request_: GenerateRequest) -> GenerateRequest:
    return dataclasses.replace(request_, image=None)


def test_the_reference_is_the_null_of_training(
    toy: OmniHumanPipeline, request_: GenerateRequest, blind: GenerateRequest
) -> None:
    pictured, clip = toy.prepare(request_), toy.prepare(blind)
    for conditioning in clip.conditions.segment(clip.segments[0], None):
        assert torch.equal(conditioning.reference.latents, null_latents(pictured.conditions.reference).latents)
    # All else is what it is with a picture of the same aspect.
    assert (clip.fit.width, clip.fit.height) == (pictured.fit.width, pictured.fit.height)
    assert torch.equal(clip.conditions.text.tokens, pictured.conditions.text.tokens)
    assert torch.equal(clip.conditions.audio.tokens, pictured.conditions.audio.tokens)
    assert clip.notices == pictured.notices


def test_writes_a_marked_video(toy: OmniHumanPipeline, blind: GenerateRequest) -> None:
    result = toy(dataclasses.replace(blind, num_steps=1))
    with av.open(str(result.path)) as container:
        assert "trainedAlgorithmicMedia" in container.metadata["comment"]
        assert container.streams.video[0].frames == 25


@pytest.mark.parametrize(("aspect", "size"), [(None, (48, 48)), (2.0, (64, 32)), (0.5, (32, 64))])
def test_the_aspect_gives_the_size(
    toy: OmniHumanPipeline, blind: GenerateRequest, aspect: float | None, size: tuple[int, int]
) -> None:
    fit = toy.prepare(dataclasses.replace(blind, aspect=aspect)).fit
    assert (fit.width, fit.height) == size


def test_poses_and_region_are_fractions_of_the_video(
    toy: OmniHumanPipeline, blind: GenerateRequest, tmp_path: Path
) -> None:
    pose = write_pose(tmp_path / "pose.json", 25)
    clip = toy.prepare(dataclasses.replace(blind, pose=pose, aspect=2.0, speaker_region=(0.0, 0.0, 0.5, 1.0)))
    torch.testing.assert_close(clip.conditions.pose.keypoints[0, 5], torch.tensor([0.6, 0.5, 1.0]))
    region = clip.denoiser.guidance.region[0, 0, 0]
    width = region.shape[1]
    assert region[:, : width // 2].all()
    assert not region[:, width // 2 :].any()


def test_somebody_has_to_say_what_is_shown(blind: GenerateRequest) -> None:
    for prompt in (None, ""):
        with pytest.raises(RequestError, match=r"^image: nothing says what the video shows; give --image or --prompt"):
            dataclasses.replace(blind, prompt=prompt).validate()


def test_command_line(blind: GenerateRequest, toy_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "--prompt", "a hum", "--audio", str(blind.audio), "--out", str(blind.out), "--aspect", "1:2"]
    assert main([*words, "--model", str(toy_dir), "--num-steps", "1", "--device", "cpu"]) == 0
    assert "32x64, 25 frames" in capsys.readouterr().out
