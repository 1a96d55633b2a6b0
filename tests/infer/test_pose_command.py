"""``omnihuman-infer pose``: a video to a keypoint file and a preview, with tiny ONNX models."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
import torch

from omnihuman_conditions.pose.files import load_pose
from omnihuman_infer.cli import main

for library in ("onnx", "onnxruntime", "rtmlib"):
    pytest.importorskip(library)

from tests.conditions.test_pose_estimator import detector_model, pose_model, write_video  # noqa: E402


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
