"""Runs the extractors and encoders of a model, known by contract only: prompt, sound and poses to conditions."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from omnihuman_core.contracts import AudioCondition, PoseCondition, PoseExtractor, TextCondition, TextFeatures
from omnihuman_core.model_dir import ModelComponents
from omnihuman_infer.request import RequestError

ComponentT = TypeVar("ComponentT")


class Encoders:
    """The extractors and encoders of one model, on its device and in its dtype.

    Attributes:
        device: Where conditions are made.
        dtype: Dtype of floating conditions.
    """

    def __init__(self, components: ModelComponents, *, device: torch.device, dtype: torch.dtype) -> None:
        self._components = components
        self.device = device
        self.dtype = dtype
        self.has_text: bool = self._has("text")
        self.has_audio: bool = self._has("audio")
        self.has_pose: bool = self._has("pose")

    def accepts(self, condition: str) -> bool:
        """Whether the backbone takes a condition at all."""
        return condition in self._components.backbone.spec.conditions

    def missing(self, condition: str) -> list[str]:
        """Names of the components that would have to make a condition and are not there.

        A reference needs none: the VAE encodes it.
        """
        names = () if condition == "reference" else (f"{condition}_extractor", f"{condition}_encoder")
        return [name for name in names if getattr(self._components, name) is None]

    def _has(self, condition: str) -> bool:
        return self.accepts(condition) and not self.missing(condition)

    def text(self, prompt: str) -> TextCondition:
        """The condition of one prompt."""
        features = _there(self._components.text_extractor).extract([prompt])
        moved = TextFeatures(
            values=self._move(features.values),
            mask=features.mask.to(self.device),
            pooled=None if features.pooled is None else self._move(features.pooled),
        )
        return _there(self._components.text_encoder).encode(moved)

    def null_text(self, like: TextCondition) -> TextCondition:
        """The condition that stands for "no text"."""
        return _there(self._components.text_encoder).null(like)

    def audio(self, waveform: Tensor, frames: int) -> AudioCondition:
        """Audio tokens ``(1, t, A, D)`` of ``frames`` video frames, from ``(1, samples)`` at 16 kHz."""
        extractor = _there(self._components.audio_extractor)
        features = extractor.extract(waveform.to(self.device))
        aligned = extractor.align(features, fps=self._components.generation.fps, num_frames=frames)
        return _there(self._components.audio_encoder).encode(self._move(aligned))

    def null_audio(self, like: AudioCondition) -> AudioCondition:
        """The condition that stands for "no audio"."""
        return _there(self._components.audio_encoder).null(like)

    def read_pose(self, path: Path) -> Tensor:
        """Keypoints ``(T, 133, 3)`` of a pose file at the model's frame rate; see :func:`read_pose`."""
        return read_pose(path, self._components.pose_extractor, fps=self._components.generation.fps)

    def pose(self, keypoints: Tensor, size: tuple[int, int]) -> PoseCondition:
        """Pose features ``(1, C_pose, t, h, w)`` of keypoints ``(T, 133, 3)`` in a video of ``size`` = (H, W)."""
        maps = _there(self._components.pose_extractor).extract(keypoints, size=size)
        return _there(self._components.pose_encoder).encode(self._move(maps[None]))

    def null_pose(self, shape: tuple[int, int, int]) -> PoseCondition:
        """The condition that stands for "no pose", over ``shape`` = (t, h, w)."""
        channels = self._components.backbone.spec.pose_channels or 0
        like = PoseCondition(features=torch.empty(1, channels, *shape, device=self.device, dtype=self.dtype))
        return _there(self._components.pose_encoder).null(like)

    def _move(self, value: Tensor) -> Tensor:
        return value.to(device=self.device, dtype=self.dtype if value.is_floating_point() else value.dtype)


def _there(component: ComponentT | None) -> ComponentT:
    # Whoever asks for a condition has looked at `missing` first; this names the mistake of one who has not.
    if component is None:
        raise RequestError("model: has no component for this condition; see Encoders.missing")
    return component


def read_pose(path: Path, extractor: PoseExtractor | None, *, fps: float) -> Tensor:
    """Keypoints ``(T, 133, 3)`` of a pose file at ``fps``, read by the model's own extractor.

    Raises:
        RequestError: the model takes no poses, or the file holds none, or nobody in any frame.
    """
    if extractor is None:
        raise RequestError(
            "pose: this model takes no poses, it holds no pose_extractor; leave --pose out or choose another model"
        )
    try:
        keypoints = extractor.load(path, fps=fps)
    except (ValueError, OSError) as error:
        raise RequestError(f"pose: {' '.join(str(error).split())}") from None
    if not len(keypoints):
        raise RequestError(f"pose: {path} holds no frame; give another file")
    if not (keypoints[..., 2] > 0).any():
        raise RequestError(f"pose: {path} shows nobody in any frame; give a file with the keypoints of a person")
    return keypoints
