import dataclasses
import json
from pathlib import Path

import pytest
import torch

from omnihuman_conditions.pose.skeleton import SkeletonConfig, SkeletonExtractor
from omnihuman_infer import GenerateRequest, OmniHumanPipeline, RequestError
from omnihuman_infer.conditioning import PoseTrack
from omnihuman_infer.loading import check_directory

from .files import write_picture

EXAMPLES = Path(__file__).parents[2] / "examples"


def waving(frames: int) -> torch.Tensor:
    """Two arms that swing, ``(frames, 133, 3)`` in fractions of the picture."""
    points = torch.zeros(frames, 133, 3)
    angle = torch.linspace(0, 6, frames)
    for joint, (x, y) in {5: (0.6, 0.5), 7: (0.7, 0.6), 6: (0.4, 0.5), 8: (0.3, 0.6)}.items():
        points[:, joint] = torch.tensor([x, y, 1.0])
    points[:, 9] = torch.stack([0.75 + 0.1 * angle.cos(), 0.6 + 0.2 * angle.sin(), torch.ones(frames)], -1)
    points[:, 10] = torch.stack([0.25 + 0.1 * angle.sin(), 0.6 + 0.2 * angle.cos(), torch.ones(frames)], -1)
    return points


def write_pose(path: Path, frames: int, fps: float = 25.0) -> Path:
    path.write_text(json.dumps({"fps": fps, "keypoints": waving(frames).tolist()}))
    return path


def test_pieces_of_the_track_equal_the_whole(toy: OmniHumanPipeline) -> None:
    spec = toy.components.vae.latent_spec
    keypoints = waving(spec.pixel_frames(20))
    track = PoseTrack(keypoints=keypoints, size=(48, 32), encoders=toy.encoders, spec=spec)
    with torch.inference_mode():
        whole = toy.encoders.pose(keypoints, (48, 32)).features
        for window in (range(0, 5), range(1, 6), range(2, 7), range(3, 8), range(9, 14), range(14, 18)):
            piece = track.features(window).features
            torch.testing.assert_close(piece, whole[:, :, window.start : window.stop], rtol=1e-4, atol=1e-5)
        # Past the end the last pose is held: everything there looks like the last whole latent frame of a still pose.
        held = track.features(range(25, 28)).features
    assert torch.allclose(held[:, :, 0], held[:, :, 2], atol=1e-5)


@pytest.mark.parametrize(
    ("poses", "fps", "notice"),
    [
        (25, 25.0, None),
        (10, 25.0, "pose lasts 0.40 s and audio 1.00 s; the last pose is held"),
        (60, 25.0, "pose lasts 2.40 s and audio 1.00 s; the rest of the poses is left out"),
        (50, 50.0, None),
    ],
)
def test_video_follows_the_sound_where_lengths_differ(
    toy: OmniHumanPipeline, request_: GenerateRequest, tmp_path: Path, poses: int, fps: float, notice: str | None
) -> None:
    clip = toy.prepare(dataclasses.replace(request_, pose=write_pose(tmp_path / "pose.json", poses, fps)))
    assert clip.num_frames == 25
    assert clip.notices == (() if notice is None else (notice,))


def test_pose_alone_gives_the_length_and_a_mute_video(
    toy: OmniHumanPipeline, request_: GenerateRequest, tmp_path: Path
) -> None:
    import av

    pose = write_pose(tmp_path / "pose.json", 12)
    request = dataclasses.replace(request_, audio=None, pose=pose)
    clip = toy.prepare(request)
    # Paper section 3.4: with pose alone, audio is off.
    positive, negative = clip.conditions.segment(clip.segments[0], None)
    assert torch.equal(positive.audio.tokens, negative.audio.tokens)
    assert toy(request).num_frames == 12
    with av.open(str(request.out)) as container:
        assert not container.streams.audio
    assert toy.prepare(dataclasses.replace(request, seconds=0.2)).num_frames == 5


def test_without_poses_the_condition_is_the_null_of_its_encoder(
    toy: OmniHumanPipeline, request_: GenerateRequest
) -> None:
    clip = toy.prepare(request_)
    features = clip.conditions.segment(clip.segments[0], None)[0].pose.features
    assert torch.equal(features, toy.components.pose_encoder.null_feature.view(1, -1, 1, 1, 1).expand_as(features))


def test_poses_follow_the_cut_of_the_picture(toy: OmniHumanPipeline, request_: GenerateRequest, tmp_path: Path) -> None:
    """A picture too wide for the model is cut on both sides: its middle stays the middle, its borders leave."""
    picture = write_picture(tmp_path / "wide.png", 400, 100)
    clip = toy.prepare(dataclasses.replace(request_, image=picture, pose=write_pose(tmp_path / "pose.json", 5)))
    fit = clip.fit
    assert fit.width / fit.height == 2.0
    placed = clip.conditions.pose.keypoints[0]
    torch.testing.assert_close(placed[5], torch.tensor([0.5 + 0.1 * 2, 0.5, 1.0]))
    torch.testing.assert_close(placed[7], torch.tensor([0.5 + 0.2 * 2, 0.6, 1.0]))


def test_bad_pose_files(toy_dir: Path, toy: OmniHumanPipeline, request_: GenerateRequest, tmp_path: Path) -> None:
    good = write_pose(tmp_path / "good.json", 10)
    check_directory(str(toy_dir), GenerateRequest(pose=good))
    contents = {
        "cut": good.read_text()[:-20],
        "binary": "\x00\x01",
        "wrong": json.dumps({"keypoints": [[[0, 0, 0]] * 7]}),
        "none": json.dumps({"keypoints": []}),
        "endless": json.dumps({"fps": 0.01, "keypoints": waving(10).tolist()}),
    }
    for name, content in contents.items():
        path = tmp_path / f"{name}.json"
        path.write_text(content)
        with pytest.raises(RequestError, match=r"^pose: ") as caught:
            toy(dataclasses.replace(request_, pose=path))
        assert "\n" not in str(caught.value)
        assert not request_.out.exists()
        if name != "endless":
            with pytest.raises(RequestError, match=r"^pose: "):
                check_directory(str(toy_dir), GenerateRequest(pose=path))
    nobody = {"empty": {"people": []}, "unseen": {"keypoints": [[[0.5, 0.5, 0]] * 133] * 3}}
    for name, content in nobody.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(2):
        (frames / f"{number}.json").write_text(json.dumps({"people": []}))
    for path in (tmp_path / "empty.json", tmp_path / "unseen.json", frames):
        with pytest.raises(RequestError, match=r"^pose: .* shows nobody in any frame; give"):
            toy(dataclasses.replace(request_, pose=path))
        assert not request_.out.exists()
    empty = tmp_path / "folder"
    empty.mkdir()
    with pytest.raises(RequestError, match=r"^pose: .*no .json file"):
        toy(dataclasses.replace(request_, pose=empty))


def test_the_shipped_gestures_are_those_of_the_demo() -> None:
    from omnihuman_train.data.characters import make_clip, split_seed

    given = SkeletonExtractor(SkeletonConfig.tiny()).load(EXAMPLES / "assets" / "gestures.json", fps=25.0)
    clip = make_clip(
        split_seed("heldout", 9006), num_frames=100, framing="half", speech="speech", persons=1, fail_rate=0.0
    )
    seen = given[..., 2] == 1
    assert given.shape == clip.keypoints.shape
    # Shoulders to wrists, and hands, in every frame; no point of the face.
    assert seen[:, 5:11].all()
    assert seen[:, 91:].all()
    assert not seen[:, 23:91].any()
    # Half the frames, joined by straight lines.
    assert (given - clip.keypoints)[..., :2][seen].abs().max() < 0.02
