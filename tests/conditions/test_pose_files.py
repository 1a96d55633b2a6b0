"""Keypoint files: round trips, OpenPose by the names of its joints, resampling, and every bad file."""

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from omnihuman_conditions.pose.files import load_pose, save_pose
from omnihuman_conditions.pose.keypoints import FACE, LEFT_HAND, LIMBS, RIGHT_HAND, PoseSequence

# The published orders, by name.
COCO = [
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
    "left_big_toe",
    "left_small_toe",
    "left_heel",
    "right_big_toe",
    "right_small_toe",
    "right_heel",
]
BODY_25 = [
    "nose",
    "neck",
    "right_shoulder",
    "right_elbow",
    "right_wrist",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
    "mid_hip",
    "right_hip",
    "right_knee",
    "right_ankle",
    "left_hip",
    "left_knee",
    "left_ankle",
    "right_eye",
    "left_eye",
    "right_ear",
    "left_ear",
    "left_big_toe",
    "left_small_toe",
    "left_heel",
    "right_big_toe",
    "right_small_toe",
    "right_heel",
]
COCO_18 = [
    "nose",
    "neck",
    "right_shoulder",
    "right_elbow",
    "right_wrist",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
    "right_hip",
    "right_knee",
    "right_ankle",
    "left_hip",
    "left_knee",
    "left_ankle",
    "right_eye",
    "left_eye",
    "right_ear",
    "left_ear",
]


def sequence(frames: int = 4, fps: float = 30.0) -> PoseSequence:
    return PoseSequence(keypoints=torch.rand(frames, 133, 3, generator=torch.Generator().manual_seed(0)), fps=fps)


def openpose(body: list[str], place: dict[str, tuple[float, float]], **extra: Any) -> dict[str, Any]:
    points = [[*place.get(name, (0, 0)), 0.9 if name in place else 0] for name in body]
    person = {"pose_keypoints_2d": np.ravel(points).tolist(), **extra}
    return {"version": 1.3, "people": [person], "canvas_width": 200, "canvas_height": 100}


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize("name", ["a.json", "a.npz", "a.safetensors"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    save_pose(sequence(), tmp_path / name)
    loaded = load_pose(tmp_path / name)
    assert loaded.fps == 30.0
    torch.testing.assert_close(loaded.keypoints, sequence().keypoints, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["a.json", "a.npz", "a.safetensors"])
def test_the_shape_of_the_picture_is_kept(tmp_path: Path, name: str) -> None:
    save_pose(replace(sequence(), aspect=1.5), tmp_path / name)
    assert load_pose(tmp_path / name).aspect == 1.5
    assert load_pose(tmp_path / name).resample(60).aspect == 1.5
    record = {"keypoints": np.full((2, 133, 3), 4.0).tolist(), "width": 30, "height": 20}
    assert load_pose(write(tmp_path / "pixels.json", record)).aspect == 1.5
    record = {"keypoints": np.zeros((2, 133, 3)).tolist(), "aspect": 0}
    refused(write(tmp_path / "flat.json", record), "pose aspect must be in")


def test_separate_scores_in_pixels(tmp_path: Path) -> None:
    xy, scores = np.random.default_rng(0).random((3, 133, 2)), np.full((3, 133), 0.5)
    np.savez(tmp_path / "a.npz", keypoints=xy * (640, 480), scores=scores, width=640, height=480)
    loaded = load_pose(tmp_path / "a.npz", fps=15)
    assert loaded.fps == 15
    np.testing.assert_allclose(loaded.keypoints[..., :2].numpy(), xy, atol=1e-6)
    assert loaded.keypoints[..., 2].unique().tolist() == [0.5]


@pytest.mark.parametrize("body", [BODY_25, COCO_18])
def test_openpose_joints_by_name(tmp_path: Path, body: list[str]) -> None:
    place = {name: (10.0 + 3 * i, 5.0 + 2 * i) for i, name in enumerate(body)}
    loaded = load_pose(write(tmp_path / "a.json", openpose(body, place)))
    assert loaded.fps == 25.0
    for index, name in enumerate(COCO):
        x, y, score = loaded.keypoints[0, index].tolist()
        if name in place:
            assert (x * 200, y * 100) == pytest.approx(place[name], abs=1e-4), name
            assert score == pytest.approx(0.9)
        else:
            assert score == 0


def test_openpose_hands_face_and_best_person(tmp_path: Path) -> None:
    def part(count: int, start: float) -> list[float]:
        return np.ravel([[start + i, 1, 0.8] for i in range(count)]).tolist()

    frame = openpose(
        BODY_25,
        {"nose": (100, 50)},
        face_keypoints_2d=part(70, 0),
        hand_left_keypoints_2d=part(21, 80),
        hand_right_keypoints_2d=part(21, 120),
    )
    frame["people"].insert(0, {"pose_keypoints_2d": [1, 1, 0.1] * 25})
    points = load_pose(write(tmp_path / "a.json", [frame, {"people": [], "canvas_width": 200}])).keypoints
    assert points.shape == (2, 133, 3)
    assert points[0, 0].tolist() == pytest.approx([0.5, 0.5, 0.9])
    for span, start in ((FACE, 0), (LEFT_HAND, 80), (RIGHT_HAND, 120)):
        expected = [(start + i) / 200 for i in range(len(span))]
        assert points[0, list(span), 0].tolist() == pytest.approx(expected, abs=1e-6)
    assert points[1].abs().sum() == 0


def test_openpose_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    for i in (2, 0, 1):
        write(tmp_path / f"clip_{i:012d}_keypoints.json", openpose(COCO_18, {"nose": (20.0 * i, 10.0)}))
    loaded = load_pose(tmp_path, fps=24)
    assert loaded.fps == 24
    assert loaded.keypoints[:, 0, 0].tolist() == pytest.approx([0, 0.1, 0.2])


def test_size_argument_for_files_that_do_not_say(tmp_path: Path) -> None:
    frame = openpose(COCO_18, {"nose": (100, 50)})
    del frame["canvas_width"], frame["canvas_height"]
    path = write(tmp_path / "a.json", frame)
    with pytest.raises(ValueError, match="add 'width' and 'height'"):
        load_pose(path)
    assert load_pose(path, size=(100, 200)).keypoints[0, 0, :2].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(("source", "target"), [(30.0, 25.0), (25.0, 50.0), (24.0, 16.0)])
def test_resample_equals_numpy(source: float, target: float) -> None:
    pose = sequence(24, source)
    pose.keypoints[..., 2] = 1
    got = pose.resample(target)
    count = round(24 / source * target)
    assert got.keypoints.shape == (count, 133, 3)
    stamps, times = (np.arange(24) + 0.5) / source, (np.arange(count) + 0.5) / target
    expected = np.interp(times, stamps, pose.keypoints[:, 7, 1].double().numpy())
    np.testing.assert_allclose(got.keypoints[:, 7, 1].numpy(), expected, atol=1e-5)
    assert pose.resample(source) is pose


def test_a_missing_point_does_not_pull_its_neighbour() -> None:
    keypoints = torch.zeros(3, 133, 3)
    keypoints[1] = torch.tensor([0.5, 0.25, 1.0])
    got = PoseSequence(keypoints=keypoints, fps=10).resample(20).keypoints
    seen = got[..., 2] > 0
    assert seen[:, 0].tolist() == [False, True, True, True, True, False]
    assert torch.equal(got[..., :2][seen], torch.tensor([0.5, 0.25]).expand(int(seen.sum()), 2))
    assert got[:, 0, 2].tolist() == pytest.approx([0, 0.25, 0.75, 0.75, 0.25, 0])


def test_limbs_connect_named_neighbours_on_both_sides() -> None:
    names = {frozenset((COCO[a], COCO[b])) for a, b in LIMBS}
    assert len(names) == len(LIMBS)
    for joint, next_joint in (("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle")):
        for side in ("left", "right"):
            assert frozenset((f"{side}_{joint}", f"{side}_{next_joint}")) in names


def refused(path: Path, match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        load_pose(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_empty_and_other_files(tmp_path: Path) -> None:
    refused(tmp_path / "none.json", "not found")
    refused(tmp_path, "no .json file")
    for name in ("a.json", "a.npz", "a.safetensors"):
        (tmp_path / name).touch()
        refused(tmp_path / name, "is empty")
    (tmp_path / "a.mp4").write_bytes(b"x")
    refused(tmp_path / "a.mp4", "must end in")
    with pytest.raises(ValueError, match="must end in"):
        save_pose(sequence(), tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["a.json", "a.npz", "a.safetensors"])
def test_truncated(tmp_path: Path, name: str) -> None:
    save_pose(sequence(), tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    refused(tmp_path / name, "damaged")


def test_pickles_and_bombs_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "pickle.npz", keypoints=np.array([{"a": 1}], dtype=object))
    refused(tmp_path / "pickle.npz", "pickled")
    monkeypatch.setattr("omnihuman_conditions.pose.files.MAX_FILE_BYTES", 1024**2)
    np.savez_compressed(tmp_path / "bomb.npz", keypoints=np.zeros(2 * 1024**2, dtype=np.uint8))
    assert (tmp_path / "bomb.npz").stat().st_size < 10_000
    refused(tmp_path / "bomb.npz", "unpacks to more than 1 MB")
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 100_000)
    refused(deep, "not valid JSON")


def write_npy(path: Path, header: str) -> Path:
    """An .npz whose one array has this header, and 64 bytes."""
    text = header.encode().ljust(118) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(64)
        archive.writestr("keypoints.npy", data)
    return path


@pytest.mark.parametrize(
    ("descr", "shape"),
    [
        ("'<f4'", "(1000000000000, 133, 3)"),
        # Of a size that a machine may hold, and that makes an array of nothing as large.
        ("'<f4'", "(4000000, 133, 3)"),
        ("'|S0'", "(4000000, 133, 3)"),
        ("'<f4'", "(-1, -1000000000000)"),
        ("'<f4'", "(-1,)"),
        ("'<f4'", "(2, 4611686018427387904, 2)"),
        ("'<f4'", "(" + "-" * 80 + "1,)"),
        ("'x'", "(2,)"),
    ],
)
def test_a_header_that_claims_too_much_is_not_believed(tmp_path: Path, descr: str, shape: str) -> None:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"
    refused(write_npy(tmp_path / "a.npz", header), "not a readable .npz")


def test_damaged_bytes_give_a_pose_or_one_line(tmp_path: Path) -> None:
    numbers, whole = np.random.default_rng(0), io.BytesIO()
    np.save(whole, np.zeros((1, 133, 3), np.float32))
    path, outcomes = tmp_path / "a.npz", []
    for _ in range(300):
        damaged = bytearray(whole.getvalue())
        for place in numbers.integers(0, 128, size=numbers.integers(1, 4)):
            damaged[place] = numbers.choice(list(b"0123456789(),'<>fVSO{}-: "))
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("keypoints.npy", bytes(damaged))
        try:
            outcomes.append(str(tuple(load_pose(path).keypoints.shape)))
        except ValueError as error:
            outcomes.append(str(error))
    assert all(outcome == "(1, 133, 3)" or str(path) in outcome and "\n" not in outcome for outcome in outcomes)
    assert len(set(outcomes)) > 1


def test_too_many_frames_are_counted_before_they_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omnihuman_conditions.pose.files.MAX_FRAMES", 3)
    refused(write(tmp_path / "a.json", [{}] * 4), "has 4 frames, at most 3")


@pytest.mark.parametrize(
    ("record", "match"),
    [
        ({"keypoints": [[[0, 0, 1]] * 17]}, r"\(frames, 133, 3\).*got \(1, 17, 3\)"),
        ({"keypoints": []}, "frames, 133, 3"),
        ({"keypoints": [[1], [1, 2]]}, "not an array"),
        ({"keypoints": "abc"}, "not an array"),
        ({"keypoints": [[[0, 0, float("nan")]] * 133]}, "NaN"),
        ({"keypoints": [[[200, 100, 1]] * 133]}, "add 'width' and 'height'"),
        ({"keypoints": [[[0, 0, 1]] * 133], "fps": -1}, "'fps' must be"),
        ({"keypoints": [[[0, 0, 1]] * 133], "fps": "fast"}, "'fps' is not a number"),
        ({"keypoints": [[[0, 0, 1]] * 133], "width": 0, "height": 0}, "size must be positive"),
        ({"keypoints": [[[0, 0, 1]] * 133], "width": 1e308, "height": 1e308}, "at most 1000000"),
        ({"keypoints": [[[0, 0, 1]] * 133], "width": float("inf"), "height": 2}, "'width' must be finite, got inf"),
        ({"keypoints": [[[0, 0, 1]] * 133], "width": 2, "height": float("nan")}, "'height' must be finite, got nan"),
        ({"keypoints": [[[0, 0, 1]] * 133], "aspect": float("nan")}, "'aspect' must be finite"),
        ({"keypoints": [[[0, 0, 1]] * 133], "fps": float("-inf")}, "'fps' must be finite"),
        ({"keypoints": [[[0, 0, 1]] * 133], "fps": 10**400}, "'fps' is not a number"),
        ({"keypoints": [[[0, 0]] * 133], "scores": [[1] * 5]}, "'scores' must be"),
        ({"something": 1}, "neither 'keypoints' nor"),
        ([], "frames, 133, 3"),
        (3, "neither 'keypoints' nor"),
        ({"people": [{"pose_keypoints_2d": [0, 0, 1] * 7}]}, "7 body points, 25 or 18"),
        ({"people": [{"pose_keypoints_2d": [0, 0]}]}, "x, y, score triples"),
        ({"people": [{"hand_left_keypoints_2d": [0, 0, 1]}]}, "1 points in hand_left_keypoints_2d, expected 21"),
    ],
)
def test_bad_content(tmp_path: Path, record: Any, match: str) -> None:
    refused(write(tmp_path / "a.json", record), match)


@pytest.mark.parametrize(
    ("keypoints", "fps", "match"),
    [
        (torch.zeros(2, 17, 3), 25.0, "133"),
        (torch.zeros(0, 133, 3), 25.0, "T >= 1"),
        (torch.zeros(1, 133, 3), 0.0, "fps"),
        (torch.full((1, 133, 3), float("inf")), 25.0, "NaN"),
    ],
)
def test_sequence_refuses(keypoints: torch.Tensor, fps: float, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        PoseSequence(keypoints=keypoints, fps=fps)
