"""Keypoints from a video with RTMPose or DWPose models, run by rtmlib from local ONNX files."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from omnihuman_conditions.pose.files import load_pose, save_pose
from omnihuman_conditions.pose.keypoints import PoseSequence
from omnihuman_conditions.pose.preview import draw_preview
from omnihuman_conditions.pose.retarget import retarget
from omnihuman_conditions.pose.smoothing import smooth
from omnihuman_conditions.pose.tracking import follow_person
from omnihuman_conditions.pose.video import open_video
from omnihuman_conditions.pretrained import one_line
from omnihuman_core.contracts.extractor import NUM_KEYPOINTS


@dataclass(frozen=True, kw_only=True)
class RtmlibConfig:
    """Settings of an :class:`RtmlibExtractor`.

    Attributes:
        pose: Local ONNX file of a whole-body RTMPose, RTMW or DWPose model of 133 points.
        detector: Local ONNX file of a YOLOX person detector, or None where one person fills the frame.
        device: Where onnxruntime runs them.
        smooth_seconds: Window of the smoothing; 0 leaves the points as they are found.
    """

    pose: str
    detector: str | None
    device: Literal["cpu", "cuda"]
    smooth_seconds: float

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"RtmlibConfig.device must be cpu or cuda, got {self.device!r}")
        if not 0 <= self.smooth_seconds <= 10:
            raise ValueError(f"RtmlibConfig.smooth_seconds must be in [0, 10], got {self.smooth_seconds}")

    @classmethod
    def base(cls, pose: str, detector: str | None) -> Self:
        """On the CPU, smoothed over 0.28 s, which is 7 frames at 25 a second."""
        return cls(pose=pose, detector=detector, device="cpu", smooth_seconds=0.28)


class RtmlibExtractor:
    """Finds one person's whole-body keypoints in a video.

    rtmlib would download a model that it does not find; here every path must be a file, so that nothing is fetched.
    """

    config_class = RtmlibConfig

    def __init__(self, config: RtmlibConfig) -> None:
        """Load the models.

        Raises:
            ValueError: a path is no local file, a file holds no such model, or rtmlib is not installed.
        """
        self.config = config
        for name in ("pose", "detector"):
            path = getattr(config, name)
            if path is not None and not Path(path).is_file():
                raise ValueError(f"{name} model is not a local file: {path}; download the .onnx file yourself")
        try:
            import_module("onnxruntime")
            rtmlib = import_module("rtmlib")
        except ImportError as error:
            raise ValueError("pose estimation needs rtmlib: pip install 'omnihuman-conditions[pose]'") from error
        self._pose = _load(rtmlib.RTMPose, config.pose, "pose", config.device)
        # rtmlib wants width and height here, height and width below.
        height, width = _input_size(self._pose, config.pose, "pose")
        self._pose.model_input_size = (width, height)
        outputs = [list(output.shape) for output in self._pose.session.get_outputs()]
        if len(outputs) != 2 or any(len(shape) != 3 or shape[1] != NUM_KEYPOINTS for shape in outputs):
            raise ValueError(
                f"pose model must give two maps of {NUM_KEYPOINTS} whole-body points, it gives {outputs}: {config.pose}"
            )
        self._detector = None
        if config.detector is not None:
            self._detector = _load(rtmlib.YOLOX, config.detector, "detector", config.device)
            self._detector.model_input_size = _input_size(self._detector, config.detector, "detector")

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """Keypoints ``(people, 133, 3)`` of a frame ``(H, W, 3)`` uint8 RGB, in pixels; see ``PoseEstimator``."""
        # rtmlib reads pictures as OpenCV does.
        picture = np.ascontiguousarray(frame[..., ::-1])
        boxes: Any = []
        if self._detector is not None:
            with one_line(f"detector model {self.config.detector} cannot be used"):
                boxes = self._detector(picture)
            # Without a box rtmlib would take the whole frame for a person.
            if len(boxes) == 0:
                return np.zeros((0, NUM_KEYPOINTS, 3))
        with one_line(f"pose model {self.config.pose} cannot be used"):
            points, scores = self._pose(picture, bboxes=boxes)
        return np.concatenate([points, scores[..., None]], axis=-1)  # (people, 133, 3)

    def extract(self, raw: str | Path) -> PoseSequence:
        """Keypoints of the best seen person of a video file, followed through it and smoothed.

        Raises:
            ValueError: the file is no video that can be read, or shows nobody. One line that names the file.
        """
        video = open_video(raw)
        try:
            sequence = follow_person(self, video.frames(), fps=video.fps)
        except ValueError as error:
            raise error if str(raw) in str(error) else ValueError(f"{error}: {raw}") from error
        return smooth(sequence, window_seconds=self.config.smooth_seconds)

    def find(self, picture: np.ndarray) -> PoseSequence:
        """Keypoints of the best seen person of one picture ``(H, W, 3)`` uint8 RGB, as a sequence of one frame.

        Raises:
            ValueError: nobody is found.
        """
        people = self(picture)
        if len(people) == 0:
            raise ValueError("nobody was found in the picture; choose another one")
        return follow_person(lambda frame: people, [picture], fps=1.0)

    def load(self, path: str | Path) -> PoseSequence:
        """Read a keypoint file; see :func:`load_pose`."""
        return load_pose(path)

    def retarget(self, sequence: PoseSequence, reference: PoseSequence) -> PoseSequence:
        """The motion with the proportions and at the place of another person; see :func:`retarget`.

        Args:
            sequence: The driver's motion.
            reference: The other person; the first frame counts.

        Returns:
            The motion in fractions of the reference's picture.

        Raises:
            ValueError: a file did not say the shape of its picture, or shoulders are hidden.
        """
        if sequence.aspect is None or reference.aspect is None:
            raise ValueError("keypoint file does not say the shape of its picture: add 'aspect', width over height")
        keypoints = retarget(
            sequence.keypoints,
            reference.keypoints[0],
            driver_aspect=sequence.aspect,
            reference_aspect=reference.aspect,
        )
        return replace(sequence, keypoints=keypoints, aspect=reference.aspect)

    def save(self, sequence: PoseSequence, path: str | Path) -> None:
        """Write a keypoint file; see :func:`save_pose`."""
        save_pose(sequence, path)

    def preview(self, sequence: PoseSequence, behind: str | Path | np.ndarray) -> Iterator[np.ndarray]:
        """Frames ``(H, W, 3)`` uint8 RGB with the skeletons drawn on them; see :func:`draw_preview`.

        Args:
            sequence: Keypoints.
            behind: What they are drawn on: a video file, or one picture ``(H, W, 3)`` for all frames.
        """
        frames = itertools.repeat(behind) if isinstance(behind, np.ndarray) else open_video(behind).frames()
        return draw_preview(frames, sequence)


def _load(tool: Any, path: str, name: str, device: str) -> Any:
    # rtmlib prints a line for every model it loads.
    with one_line(f"{name} model cannot be loaded from {path}"), contextlib.redirect_stdout(io.StringIO()):
        return tool(path, backend="onnxruntime", device=device)


def _input_size(tool: Any, path: str, name: str) -> tuple[int, int]:
    """Height and width of the pictures that a model takes."""
    inputs = tool.session.get_inputs()
    shape = list(inputs[0].shape)
    if len(inputs) != 1 or len(shape) != 4 or shape[1] != 3 or not all(isinstance(side, int) for side in shape[2:]):
        raise ValueError(f"{name} model must take one picture (1, 3, H, W) of fixed size, it takes {shape}: {path}")
    return shape[2], shape[3]
