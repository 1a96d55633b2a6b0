"""``omnihuman-infer pose``: a video to a keypoint file and a preview, with tiny ONNX models."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from omnihuman_conditions.pose.estimator import RtmlibConfig, RtmlibExtractor
from omnihuman_conditions.pose.files import load_pose, save_pose
from omnihuman_conditions.pose.keypoints import PoseSequence
from omnihuman_conditions.pose.retarget import retarget
from omnihuman_infer import GenerateRequest, OmniHumanPipeline
from omnihuman_infer.cli import main
from omnihuman_infer.media.picture import load_picture

for library in ("onnx", "onnxruntime", "rtmlib"):
    pytest.importorskip(library)

from tests.conditions.test_pose_estimator import HEIGHT, WIDTH, detector_model, pose_model, write_video  # noqa: E402

from .files import voice, write_picture, write_wav  # noqa: E402


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    pose_model(tmp_path / "models" / "dw-ll.onnx")
    return tmp_path / "models"


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "driver.mp4")


def test_keypoints_and_preview(video: Path, models: Path, tmp_path: Path) -> None:
    out, preview = tmp_path / "made" / "k.json", tmp_path / "made" / "p.mp4"
    arguments = ["pose", str(video), "--out", str(out), "--preview", str(preview), "--models", str(models)]
    assert main(arguments) == 0
    sequence = load_pose(out)
    assert sequence.keypoints.shape == (6, 133, 3)
    assert sequence.fps == 12
    with av.open(str(preview)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        assert file.streams.video[0].average_rate == 12
        # A drawing on a recording: it must not say that it is generated.
        assert "comment" not in file.metadata
    assert len(frames) == 6
    with av.open(str(video)) as file:
        plain = next(file.decode(video=0)).to_ndarray(format="rgb24")
    assert frames[0].shape == plain.shape
    assert abs(frames[0].astype(int) - plain).max() > 60
    assert sorted(path.name for path in out.parent.iterdir()) == ["k.json", "p.mp4"]


def test_the_detector_is_found_by_its_name(video: Path, models: Path, tmp_path: Path) -> None:
    def keypoints(name: str) -> torch.Tensor:
        assert main(["pose", str(video), "--out", str(tmp_path / name), "--models", str(models)]) == 0
        return load_pose(tmp_path / name).keypoints

    whole = keypoints("whole.npz")
    detector_model(models / "YOLOX_l.onnx", [[10, 4, 28, 28, 0.9]])
    boxed = keypoints("boxed.safetensors")
    assert boxed[..., 0].max() < 0.6 < whole[..., 0].max()


def square(keypoints: torch.Tensor, aspect: float) -> torch.Tensor:
    """Points in units of the picture's height."""
    return keypoints[..., :2] * torch.tensor([aspect, 1.0])


def test_the_drivers_motion_on_another_person(
    video: Path, models: Path, tmp_path: Path, toy: OmniHumanPipeline
) -> None:
    picture, out, preview = write_picture(tmp_path / "tall.png", 40, 80), tmp_path / "k.json", tmp_path / "p.mp4"
    words = ["pose", str(video), "--models", str(models)]
    assert main([*words, "--out", str(tmp_path / "driver.json")]) == 0
    assert main([*words, "--out", str(out), "--preview", str(preview), "--retarget-to", str(picture)]) == 0
    driver, got = load_pose(tmp_path / "driver.json"), load_pose(out)
    assert (driver.aspect, got.aspect) == (WIDTH / HEIGHT, 0.5)
    estimator = RtmlibExtractor(RtmlibConfig.base(str(models / "dw-ll.onnx"), None))
    person = estimator.find(np.array(load_picture(picture))).keypoints[0]
    want = retarget(driver.keypoints, person, driver_aspect=WIDTH / HEIGHT, reference_aspect=0.5)
    torch.testing.assert_close(got.keypoints, want, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.keypoints[0, 5:7, :2].mean(0), person[5:7, :2].mean(0), atol=1e-5, rtol=0)
    with av.open(str(preview)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert [frame.shape for frame in frames] == [(80, 40, 3)] * 6
    # The file drives a video of that picture as it is.
    sound = write_wav(tmp_path / "voice.wav", voice(0.4))
    clip = toy.prepare(GenerateRequest(image=picture, audio=sound, pose=out, prompt="", out=tmp_path / "clip.mp4"))
    assert clip.conditions.pose is not None


def test_a_keypoint_file_says_who_shall_move(video: Path, models: Path, tmp_path: Path) -> None:
    """Somebody of 0.6 times the driver's size, elsewhere in a picture of another shape."""
    driver, person = tmp_path / "driver.json", tmp_path / "person.npz"
    words = ["pose", str(video), "--models", str(models)]
    assert main([*words, "--out", str(driver)]) == 0
    moving = load_pose(driver)
    small = 0.6 * square(moving.keypoints, WIDTH / HEIGHT) + torch.tensor([0.3, 0.1])
    keypoints = torch.cat([small / torch.tensor([1.25, 1.0]), moving.keypoints[..., 2:]], -1)
    save_pose(PoseSequence(keypoints=keypoints[:1], fps=25.0, aspect=1.25), person)
    out, preview = tmp_path / "k.safetensors", tmp_path / "p.mp4"
    assert main([*words, "--retarget-to", str(person), "--out", str(out), "--preview", str(preview)]) == 0
    got = load_pose(out)
    assert got.aspect == 1.25
    torch.testing.assert_close(square(got.keypoints, 1.25), small, atol=1e-4, rtol=0)
    with av.open(str(preview)) as file:
        frame = next(file.decode(video=0)).to_ndarray(format="rgb24")
    assert frame.shape == (480, 600, 3)
    assert 0 < (frame.max(-1) > 60).mean() < 0.5


def test_retargeting_refuses_in_one_line(
    video: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hidden = torch.zeros(1, 133, 3)
    save_pose(PoseSequence(keypoints=hidden, fps=25.0, aspect=1.0), tmp_path / "hidden.json")
    save_pose(PoseSequence(keypoints=hidden, fps=25.0), tmp_path / "shapeless.json")
    (tmp_path / "noise.png").write_bytes(b"noise")
    picture = write_picture(tmp_path / "me.png")
    before = sorted(tmp_path.rglob("*"))
    for source, out, message in (
        (tmp_path / "none.png", "k.json", "retarget_to: "),
        (tmp_path / "noise.png", "k.json", "is not a PNG"),
        (tmp_path / "hidden.json", "k.json", "must show both shoulders"),
        (tmp_path / "shapeless.json", "k.json", "add 'aspect'"),
        (tmp_path / "hidden.json", "hidden.json", "would be overwritten"),
    ):
        words = ["pose", str(video), "--out", str(tmp_path / out), "--models", str(models)]
        assert main([*words, "--retarget-to", str(source)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    detector_model(models / "yolox.onnx", [[0, 0, 5, 5, 0.1]])
    words = ["pose", str(video), "--out", str(tmp_path / "k.json"), "--models", str(models)]
    assert main([*words, "--retarget-to", str(picture)]) == 2
    assert "me.png: nobody was found in the picture" in capsys.readouterr().err
    (models / "yolox.onnx").unlink()
    assert sorted(tmp_path.rglob("*")) == before


def test_wrong_requests_are_one_line_and_write_nothing(
    video: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, crowded, broken = (tmp_path / name for name in ("empty", "crowded", "broken"))
    for folder in (empty, crowded, broken):
        folder.mkdir()
    pose_model(crowded / "a.onnx")
    pose_model(crowded / "b.onnx")
    (broken / "pose.onnx").write_bytes(b"noise")
    (tmp_path / "noise.mp4").write_bytes(b"noise" * 100)
    before = sorted(tmp_path.rglob("*"))
    good = {"video": video, "--out": tmp_path / "k.json", "--models": models}
    for changes, message in (
        ({"video": tmp_path / "none.mp4"}, "video: "),
        ({"video": tmp_path / "noise.mp4"}, "cannot be decoded"),
        ({"--out": tmp_path / "k.txt"}, "must end in .json, .npz, .safetensors"),
        ({"--preview": tmp_path / "p.avi"}, "must end in .mp4"),
        ({"--preview": video}, "would be overwritten"),
        ({"--models": tmp_path / "nowhere"}, "is no directory"),
        ({"--models": empty}, "must hold one .onnx pose model"),
        ({"--models": crowded}, "found ['a.onnx', 'b.onnx']"),
        ({"--models": broken}, "pose model cannot be loaded"),
    ):
        request = good | changes
        words = [str(request.pop("video")), *(str(word) for pair in request.items() for word in pair)]
        assert main(["pose", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert sorted(tmp_path.rglob("*")) == before


def test_nobody_in_the_video_leaves_nothing(
    video: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    detector_model(models / "yolox.onnx", [[0, 0, 5, 5, 0.1]])
    out = tmp_path / "new" / "k.json"
    arguments = ["pose", str(video), "--out", str(out), "--preview", str(tmp_path / "p.mp4"), "--models", str(models)]
    assert main(arguments) == 2
    assert "nobody was found" in capsys.readouterr().err
    assert not out.exists()
    assert not (tmp_path / "p.mp4").exists()
