"""Keypoint files: our own, COCO-WholeBody arrays, and OpenPose JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnihuman_conditions.pose.keypoints import FACE, LEFT_HAND, RIGHT_HAND, PoseSequence
from omnihuman_conditions.pose.npz import read_npz
from omnihuman_core.contracts.extractor import NUM_KEYPOINTS

DEFAULT_FPS = 25.0
MAX_FILE_BYTES = 256 * 1024**2
MAX_FRAMES = 60_000
MAX_SIDE = 1_000_000
FORMAT = "coco_wholebody_133"
_FIELDS = ("keypoints", "scores", "fps", "width", "height", "aspect")

# Index in COCO-WholeBody of each point of OpenPose's two body models; neck and middle of the hips have none.
_BODY_25 = (0, None, 6, 8, 10, 5, 7, 9, None, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3, 17, 18, 19, 20, 21, 22)
_COCO_18 = (0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)


def load_pose(path: str | Path, *, fps: float | None = None, size: tuple[int, int] | None = None) -> PoseSequence:
    """Read the keypoints of one person.

    Formats:
        * ``.json``, ``.npz``, ``.safetensors`` with ``keypoints`` ``(T, 133, 3)``, or ``(T, 133, 2)`` and ``scores``
          ``(T, 133)``, in COCO-WholeBody order; optional ``fps``, ``width``, ``height``, or ``aspect`` (width over
          height) where the points are fractions.
        * OpenPose ``.json`` of one frame (BODY_25 or COCO-18, hands, face), a list of such frames, or a folder with one
          file per frame in the order of their names. In each frame the person with the highest summed score counts.

    Coordinates are pixels when the size of the picture is given, by the file (``width`` and ``height``, OpenPose:
    ``canvas_width`` and ``canvas_height``) or by ``size``, and fractions of it otherwise.

    Args:
        path: File or folder.
        fps: Frame rate to assume where the file has none; 25 by default.
        size: Height and width of the picture the points were found in, for files that do not say.

    Raises:
        ValueError: missing, empty, oversized or damaged file, unknown format, wrong shape, or pixel coordinates without
            the size of the picture. One line that names the file.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.json"))
        if not files:
            raise ValueError(f"pose folder has no .json file: {path}")
        if len(files) > MAX_FRAMES:
            raise ValueError(f"pose folder has {len(files)} files, at most {MAX_FRAMES} are accepted: {path}")
        record: Mapping[str, Any] = _openpose([_read_json(file) for file in files], path)
    else:
        record = _read_file(path)
    return _sequence(record, path, fps, size)


def save_pose(sequence: PoseSequence, path: str | Path) -> None:
    """Write ``.json``, ``.npz`` or ``.safetensors``; coordinates are fractions of the picture.

    Raises:
        ValueError: another ending.
    """
    path = Path(path)
    numbers = {"fps": sequence.fps} | ({} if sequence.aspect is None else {"aspect": sequence.aspect})
    if path.suffix == ".json":
        record = {"format": FORMAT, **numbers, "keypoints": sequence.keypoints.tolist()}
        path.write_text(json.dumps(record), encoding="utf-8")
    elif path.suffix == ".npz":
        arrays: dict[str, Any] = {name: np.float64(value) for name, value in numbers.items()}
        np.savez_compressed(path, keypoints=sequence.keypoints.numpy(), **arrays)
    elif path.suffix == ".safetensors":
        from safetensors.torch import save_file

        metadata = {"format": FORMAT, **{name: repr(value) for name, value in numbers.items()}}
        save_file({"keypoints": sequence.keypoints.contiguous()}, path, metadata=metadata)
    else:
        raise ValueError(f"pose file must end in .json, .npz or .safetensors, got {path}")


def _read_file(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise ValueError(f"pose file not found: {path}")
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"pose file is empty: {path}")
    if size > MAX_FILE_BYTES:
        raise ValueError(f"pose file is larger than {MAX_FILE_BYTES // 1024**2} MB: {path}")
    if path.suffix == ".json":
        data = _read_json(path)
        if isinstance(data, Mapping) and "keypoints" in data:
            return data
        return _openpose(data if isinstance(data, list) else [data], path)
    if path.suffix == ".npz":
        return read_npz(path, _FIELDS, max_bytes=MAX_FILE_BYTES)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    raise ValueError(f"pose file must end in .json, .npz or .safetensors, got {path}")


def _read_json(path: Path) -> Any:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"pose file is larger than {MAX_FILE_BYTES // 1024**2} MB: {path}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"pose file is not valid JSON (damaged or truncated): {path}") from error


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            record: dict[str, Any] = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
            record.update(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ValueError(f"pose file is not readable safetensors (damaged or truncated): {path}") from error
    return record


def _sequence(record: Mapping[str, Any], path: Path, fps: float | None, size: tuple[int, int] | None) -> PoseSequence:
    if "keypoints" not in record:
        raise ValueError(f"pose file has no 'keypoints': {path}")
    keypoints = _array(record["keypoints"], "keypoints", path)
    if keypoints.ndim == 3 and keypoints.shape[2] == 2 and "scores" in record:
        scores = _array(record["scores"], "scores", path)
        if scores.shape != keypoints.shape[:2]:
            raise ValueError(f"pose 'scores' must be {tuple(keypoints.shape[:2])}, got {tuple(scores.shape)}: {path}")
        keypoints = torch.cat([keypoints, scores[..., None]], -1)
    if keypoints.ndim != 3 or keypoints.shape[0] < 1 or tuple(keypoints.shape[1:]) != (NUM_KEYPOINTS, 3):
        raise ValueError(
            f"pose 'keypoints' must be (frames, {NUM_KEYPOINTS}, 3) in COCO-WholeBody order, "
            f"got {tuple(keypoints.shape)}: {path}"
        )
    if keypoints.shape[0] > MAX_FRAMES:
        raise ValueError(f"pose file has {keypoints.shape[0]} frames, at most {MAX_FRAMES} are accepted: {path}")
    if not torch.isfinite(keypoints).all():
        raise ValueError(f"pose file holds NaN or infinite values (give a missing point score 0): {path}")
    if "width" in record and "height" in record:
        size = round(_number(record, "height", path)), round(_number(record, "width", path))
    if size is not None:
        if not 1 <= min(size) <= max(size) <= MAX_SIDE:
            raise ValueError(
                f"pose picture size must be positive and at most {MAX_SIDE}, "
                f"got height x width = {size[0]:g} x {size[1]:g}: {path}"
            )
        keypoints = keypoints / torch.tensor([size[1], size[0], 1.0], dtype=keypoints.dtype)
    seen = keypoints[..., 2] > 0
    if seen.any() and keypoints[..., :2][seen].abs().max() > 3:
        raise ValueError(f"pose coordinates are not fractions of the picture: add 'width' and 'height' to {path}")
    rate = _number(record, "fps", path) if "fps" in record else (DEFAULT_FPS if fps is None else fps)
    if not 0 < rate <= 1000:
        raise ValueError(f"pose 'fps' must be in (0, 1000], got {rate}: {path}")
    keypoints[..., 2].clamp_(0, 1)
    aspect = _number(record, "aspect", path) if "aspect" in record else None
    if size is not None:
        aspect = size[1] / size[0]
    try:
        return PoseSequence(keypoints=keypoints, fps=rate, aspect=aspect)
    except ValueError as error:
        raise ValueError(f"{error}: {path}") from None


def _array(value: Any, name: str, path: Path) -> Tensor:
    if isinstance(value, Tensor):
        return value.float().clone()
    try:
        return torch.from_numpy(np.array(value, dtype=np.float32))
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"pose {name!r} is not an array of numbers of one shape: {path}") from error


def _number(record: Mapping[str, Any], name: str, path: Path) -> float:
    try:
        number = float(record[name])
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"pose {name!r} is not a number: {path}") from error
    if not math.isfinite(number):
        raise ValueError(f"pose {name!r} must be finite, got {number}: {path}")
    return number


def _openpose(frames: Sequence[Any], path: Path) -> Mapping[str, Any]:
    """OpenPose frames as a record in COCO-WholeBody order."""
    if len(frames) > MAX_FRAMES:
        raise ValueError(f"pose file has {len(frames)} frames, at most {MAX_FRAMES} are accepted: {path}")
    keypoints = np.zeros((len(frames), NUM_KEYPOINTS, 3), dtype=np.float32)
    record: dict[str, Any] = {"keypoints": keypoints}
    for index, frame in enumerate(frames):
        if not isinstance(frame, Mapping) or not isinstance(frame.get("people"), list):
            raise ValueError(f"pose frame {index} has neither 'keypoints' nor a list of 'people': {path}")
        for name in ("width", "height"):
            if f"canvas_{name}" in frame:
                record[name] = frame[f"canvas_{name}"]
        people = [_person(person, index, path) for person in frame["people"]]
        if people:
            keypoints[index] = max(people, key=lambda points: float(points[:, 2].sum()))
    return record


def _person(person: Any, frame: int, path: Path) -> np.ndarray:
    points = np.zeros((NUM_KEYPOINTS, 3), dtype=np.float32)
    body = _triples(person, "pose_keypoints_2d", frame, path)
    order = {25: _BODY_25, 18: _COCO_18, 0: ()}.get(len(body))
    if order is None:
        raise ValueError(f"pose frame {frame} has {len(body)} body points, 25 or 18 are known: {path}")
    for source, target in enumerate(order):
        if target is not None:
            points[target] = body[source]
    # OpenPose's face ends with two pupils that COCO-WholeBody does not have.
    for key, span in (
        ("face_keypoints_2d", FACE),
        ("hand_left_keypoints_2d", LEFT_HAND),
        ("hand_right_keypoints_2d", RIGHT_HAND),
    ):
        part = _triples(person, key, frame, path)[: len(span)]
        if len(part) not in (0, len(span)):
            raise ValueError(f"pose frame {frame} has {len(part)} points in {key}, expected {len(span)}: {path}")
        points[span.start : span.start + len(part)] = part
    return points


def _triples(person: Any, key: str, frame: int, path: Path) -> np.ndarray:
    values = (person.get(key) if isinstance(person, Mapping) else None) or []
    try:
        return np.array(values, dtype=np.float32).reshape(-1, 3)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"pose frame {frame}: {key} is not a list of x, y, score triples: {path}") from error
