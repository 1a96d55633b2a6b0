"""Keypoints of the person in a video: what ``omnihuman-infer pose`` does."""

from __future__ import annotations

import dataclasses
import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from omnihuman_core.plugins import plugin
from omnihuman_infer.media.picture import load_picture
from omnihuman_infer.request import RequestError

PLUGIN = "pose_rtmlib"
# What the names of person detectors hold; every other ONNX file of the directory is a pose model.
DETECTOR = "yolox"
FORMATS = (".json", ".npz", ".safetensors")
PREVIEW_HEIGHT = 480


def estimate(
    video: Path,
    out: Path,
    *,
    models: Path,
    preview: Path | None = None,
    retarget_to: Path | None = None,
    device: str = "cpu",
    plugin_name: str = PLUGIN,
) -> int:
    """Write the keypoint file of a video, and a copy of the video with the skeleton on it.

    Retargeted, the motion has the proportions of another person and is in fractions of that person's picture: it drives
    a video of that picture as it is.

    Args:
        video: A video file.
        out: Keypoint file to write, ``.json``, ``.npz`` or ``.safetensors``.
        models: Directory with the ONNX file of a whole-body pose model, and with that of a YOLOX person detector
            unless one person fills the picture.
        preview: mp4 to write. Of a retargeted motion it shows the picture that it is for, black where only keypoints of
            that picture are given.
        retarget_to: Picture of the person who shall move, or a keypoint file of it.
        device: Where the models run, ``cpu`` or ``cuda``.
        plugin_name: Feature extractor that finds the keypoints.

    Returns:
        Frames.

    Raises:
        RequestError: one line that names the field and the fix; nothing is written.
    """
    _check(video, out, preview, retarget_to)
    pose, detector = _find_models(models)
    try:
        made_by: Any = plugin("feature_extractor", plugin_name)
        base = made_by.config_class.base(str(pose), None if detector is None else str(detector))
        extractor = made_by(dataclasses.replace(base, device=device))
        person, behind = (None, video) if retarget_to is None else _person(extractor, retarget_to)
        sequence = extractor.extract(video)
        if person is not None:
            sequence = extractor.retarget(sequence, person)
        out.parent.mkdir(parents=True, exist_ok=True)
        with _part(out) as part:
            extractor.save(sequence, part)
            if preview is not None:
                preview.parent.mkdir(parents=True, exist_ok=True)
                with _part(preview) as drawn:
                    _write_preview(extractor.preview(sequence, behind), drawn, fps=sequence.fps)
    except RequestError:
        raise
    except ValueError as error:
        raise RequestError(f"pose: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise RequestError(f"out: {out} cannot be written ({error.strerror})") from None
    return len(sequence.keypoints)


def _person(extractor: Any, source: Path) -> tuple[Any, np.ndarray]:
    """Keypoints of a picture or of a keypoint file, and a picture ``(H, W, 3)`` uint8 RGB to draw on."""
    if source.suffix in FORMATS:
        found = extractor.load(source)
        return found, np.zeros((PREVIEW_HEIGHT, round(PREVIEW_HEIGHT * (found.aspect or 1)), 3), np.uint8)
    try:
        picture = np.array(load_picture(source))
    except RequestError as error:
        raise RequestError(f"retarget_to: {str(error).removeprefix('image: ')}") from None
    try:
        return extractor.find(picture), picture
    except ValueError as error:
        raise RequestError(f"retarget_to: {source}: {' '.join(str(error).split())}") from None


def _check(video: Path, out: Path, preview: Path | None, retarget_to: Path | None) -> None:
    if not video.is_file():
        raise RequestError(f"video: {video} is no file; give a video")
    if retarget_to is not None and not retarget_to.is_file():
        raise RequestError(f"retarget_to: {retarget_to} is no file; give a picture or a keypoint file")
    if out.suffix not in FORMATS:
        raise RequestError(f"out: {out} must end in {', '.join(FORMATS)}")
    if preview is not None and preview.suffix != ".mp4":
        raise RequestError(f"preview: {preview} must end in .mp4")
    targets = [path.resolve() for path in (out, preview) if path is not None]
    for source in (video, retarget_to):
        if source is not None and source.resolve() in targets:
            raise RequestError(f"{source} would be overwritten; choose another name for the result")


def _find_models(directory: Path) -> tuple[Path, Path | None]:
    if not directory.is_dir():
        raise RequestError(f"models: {directory} is no directory; give the one that holds the .onnx files")
    files = sorted(directory.glob("*.onnx"))
    detectors = [file for file in files if DETECTOR in file.name.lower()]
    poses = [file for file in files if file not in detectors]
    if len(poses) != 1 or len(detectors) > 1:
        raise RequestError(
            f"models: {directory} must hold one .onnx pose model and at most one whose name has {DETECTOR!r} in it, "
            f"the person detector; found {[file.name for file in files]}"
        )
    return poses[0], detectors[0] if detectors else None


@contextmanager
def _part(out: Path) -> Iterator[Path]:
    """A name to write to, which takes the place of ``out`` at the end and is removed after an error."""
    folder = tempfile.mkdtemp(prefix=".omnihuman-", suffix=".part", dir=out.parent)
    part = Path(folder) / out.name
    try:
        yield part
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
        os.rmdir(folder)


def _write_preview(frames: Iterator[np.ndarray], path: Path, *, fps: float) -> None:
    """Write an mp4 without the marking of generated video, which this is not."""
    import av

    first = next(frames, None)
    if first is None:
        raise ValueError("the video has no frame to preview")
    # H.264 wants even sides; the last row or column goes where there is an odd one.
    height, width = (side // 2 * 2 for side in first.shape[:2])
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in itertools.chain([first], frames):
            cut = np.ascontiguousarray(picture[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(cut, format="rgb24")))
        container.mux(stream.encode(None))
