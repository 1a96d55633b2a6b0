"""Keypoints from a video: tiny ONNX models whose answers are known, run by rtmlib from local files."""

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from omnihuman_conditions.pose.estimator import RtmlibConfig, RtmlibExtractor
from omnihuman_conditions.pose.files import load_pose
from omnihuman_conditions.pose.tracking import PoseEstimator
from omnihuman_conditions.pose.video import open_video
from omnihuman_core.testing.registration import check_registrable

HEIGHT, WIDTH = 48, 64


def write_video(path: Path, frames: int = 6, *, fps: int = 12) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(frames):
            picture = np.full((HEIGHT, WIDTH, 3), 40 * index, dtype=np.uint8)
            picture[: HEIGHT // 2] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_video_frames(tmp_path: Path) -> None:
    video = open_video(write_video(tmp_path / "driver.mp4"))
    frames = list(video.frames())
    assert (video.fps, len(frames)) == (12.0, 6)
    assert frames[0].shape == (HEIGHT, WIDTH, 3)
    assert frames[3][: HEIGHT // 2 - 4].mean() > 240
    assert abs(frames[3][HEIGHT // 2 + 8 :].mean() - 120) < 10
    assert len(list(video.frames())) == 6


def test_bad_videos(tmp_path: Path) -> None:
    def refused(path: Path, match: str) -> None:
        with pytest.raises(ValueError, match=match) as caught:
            list(open_video(path).frames())
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)

    refused(tmp_path / "none.mp4", "not found")
    (tmp_path / "empty.mp4").touch()
    refused(tmp_path / "empty.mp4", "is empty")
    (tmp_path / "noise.mp4").write_bytes(b"noise" * 100)
    refused(tmp_path / "noise.mp4", "cannot be decoded")
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path / 'other.mp4'}\n")
    refused(tmp_path / "list.mp4", "cannot be decoded")
    sound = tmp_path / "sound.wav"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    refused(sound, "no picture track")


onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("rtmlib")

# Where the tiny pose model sees each point, in halves of its pixels.
POSE_HEIGHT, POSE_WIDTH = 32, 24
ACROSS = np.arange(133) % (2 * POSE_WIDTH)
DOWN = (7 * np.arange(133)) % (2 * POSE_HEIGHT)


def save_model(path: Path, size: tuple[int, int], outputs: dict[str, np.ndarray]) -> Path:
    """A model that takes a picture and answers with constants."""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    picture = helper.make_tensor_value_info("picture", onnx.TensorProto.FLOAT, [1, 3, *size])
    nodes = [helper.make_node("Constant", [], [n], value=numpy_helper.from_array(v, n)) for n, v in outputs.items()]
    infos = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, list(v.shape)) for n, v in outputs.items()]
    graph = helper.make_graph(nodes, "tiny", [picture], infos)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(path))
    return path


def pose_model(path: Path, points: int = 133) -> Path:
    x = np.zeros((1, points, 2 * POSE_WIDTH), dtype=np.float32)
    y = np.zeros((1, points, 2 * POSE_HEIGHT), dtype=np.float32)
    index = np.arange(points)
    x[0, index, ACROSS[:points]] = 0.8
    y[0, index, DOWN[:points]] = 0.8
    return save_model(path, (POSE_HEIGHT, POSE_WIDTH), {"simcc_x": x, "simcc_y": y})


def detector_model(path: Path, boxes: list[list[float]]) -> Path:
    """Boxes (x0, y0, x1, y1, score) in pixels of the detector's own 64 x 64 picture."""
    return save_model(path, (64, 64), {"dets": np.array([boxes], dtype=np.float32).reshape(1, -1, 5)})


@pytest.fixture
def pose(tmp_path: Path) -> Path:
    return pose_model(tmp_path / "pose.onnx")


def extractor(pose: Path, detector: Path | None = None) -> RtmlibExtractor:
    return RtmlibExtractor(RtmlibConfig.base(str(pose), None if detector is None else str(detector)))


def test_points_are_where_the_model_sees_them(pose: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A box of the model's own shape is widened by a quarter round its middle, and filled by the model's picture."""
    detector = detector_model(tmp_path / "detector.onnx", [[10, 4, 28, 28, 0.9], [0, 0, 5, 5, 0.1]])
    estimator = extractor(pose, detector)
    assert isinstance(estimator, PoseEstimator)
    check_registrable(estimator)
    found = estimator(np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8))
    assert found.shape == (1, 133, 3)
    scale = np.array([18, 24]) * 1.25
    corner = np.array([19, 16]) - scale / 2
    expected = corner + np.stack([ACROSS / 2 / POSE_WIDTH, DOWN / 2 / POSE_HEIGHT], -1) * scale
    np.testing.assert_allclose(found[0, :, :2], expected, atol=1e-3)
    np.testing.assert_allclose(found[0, :, 2], 0.8, atol=1e-6)
    assert capfd.readouterr().out == ""


def test_video_to_keypoint_file_and_preview(pose: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "driver.mp4")
    estimator = extractor(pose)
    sequence = estimator.extract(video)
    assert sequence.keypoints.shape == (6, 133, 3)
    assert sequence.fps == 12.0
    # Nothing moves, so that smoothing changes nothing.
    torch.testing.assert_close(sequence.keypoints[0], sequence.keypoints[5], atol=1e-5, rtol=0)
    estimator.save(sequence, tmp_path / "driver.json")
    assert torch.equal(load_pose(tmp_path / "driver.json").keypoints, sequence.keypoints)
    frames = list(estimator.preview(sequence, video))
    assert len(frames) == 6
    assert frames[0].shape == (HEIGHT, WIDTH, 3)


def test_nobody_in_the_video(pose: Path, tmp_path: Path) -> None:
    detector = detector_model(tmp_path / "detector.onnx", [[0, 0, 5, 5, 0.1]])
    video = write_video(tmp_path / "empty_room.mp4")
    with pytest.raises(ValueError, match=r"nobody was found in any of the 6 frames.*empty_room\.mp4"):
        extractor(pose, detector).extract(video)


def test_refusals(pose: Path, tmp_path: Path) -> None:
    def refused(config: RtmlibConfig, match: str) -> None:
        with pytest.raises(ValueError, match=match) as caught:
            RtmlibExtractor(config)
        assert "\n" not in str(caught.value)

    base = RtmlibConfig.base(str(pose), None)
    refused(replace(base, pose="https://example.org/pose.onnx"), "pose model is not a local file")
    refused(replace(base, detector=str(tmp_path / "none.onnx")), "detector model is not a local file")
    (tmp_path / "noise.onnx").write_bytes(b"noise")
    refused(replace(base, pose=str(tmp_path / "noise.onnx")), "pose model cannot be loaded from")
    refused(replace(base, pose=str(pose_model(tmp_path / "body.onnx", 17))), "two maps of 133 whole-body points")
    detector = detector_model(tmp_path / "detector.onnx", [[0, 0, 5, 5, 0.9]])
    refused(replace(base, pose=str(detector)), "two maps of 133 whole-body points")
    with pytest.raises(ValueError, match="must be cpu or cuda"):
        replace(base, device="tpu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="smooth_seconds"):
        replace(base, smooth_seconds=-1.0)
