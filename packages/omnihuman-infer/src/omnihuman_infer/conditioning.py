"""The conditions of a whole clip, handed out segment by segment (paper sections 3.2 and 3.4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from omnihuman_core.contracts import (
    AudioCondition,
    Conditioning,
    LatentSpec,
    MotionCondition,
    PoseCondition,
    ReferenceCondition,
    TextCondition,
)
from omnihuman_infer.encoding import Encoders
from omnihuman_infer.long_video import Segment

# Latent frames encoded round a piece of the pose track, so that the piece equals its part of the whole track: the first
# of them stands for a clip's first frame and is not exact itself.
POSE_CONTEXT = 2


@dataclass(frozen=True, kw_only=True)
class PoseTrack:
    """Poses of a clip, drawn and encoded where they are needed: maps of a whole clip would not fit memory.

    Attributes:
        keypoints: ``(T, K, 3)`` at the model's frame rate, in fractions of the video.
        size: ``(H, W)`` of the video.
        encoders: The model's.
        spec: The VAE's.
    """

    keypoints: Tensor
    size: tuple[int, int]
    encoders: Encoders
    spec: LatentSpec

    def features(self, window: range) -> PoseCondition:
        """Features of the latent frames in ``window``; past its end the last pose is held."""
        start, stop = max(window.start - POSE_CONTEXT, 0), window.stop + POSE_CONTEXT
        first = self.spec.frame_range(start)[-1]
        frames = torch.arange(first, self.spec.pixel_frames(stop)).clamp(max=len(self.keypoints) - 1)
        encoded = self.encoders.pose(self.keypoints[frames], self.size).features
        offset = window.start - start
        return PoseCondition(features=encoded[:, :, offset : offset + len(window)])


@dataclass(frozen=True, kw_only=True)
class ClipConditions:
    """Conditions of a clip and their negatives for guidance.

    Time-bound tokens cover all latent frames of the clip. What the backbone does not take is None; what it takes but
    the request does not give is the null of its encoder, as in training.
    """

    encoders: Encoders
    latent_size: tuple[int, int]
    reference: ReferenceCondition | None
    text: TextCondition | None
    negative_text: TextCondition | None
    audio: AudioCondition | None
    negative_audio: AudioCondition | None
    pose: PoseTrack | None

    def segment(self, segment: Segment, motion: Tensor | None) -> tuple[Conditioning, Conditioning]:
        """Positive and negative conditions of one segment.

        Pose, reference and motion are the same in both: guidance never acts on them (paper section 3.4).

        Args:
            segment: Where in the clip.
            motion: ``(1, C, m, h, w)`` final latents of the frames before, or None.
        """
        window = segment.window
        carried = None if motion is None else MotionCondition(latents=motion)
        pose = self._pose(window)
        positive = Conditioning(
            text=self.text, audio=_cut(self.audio, window), pose=pose, reference=self.reference, motion=carried
        )
        negative = Conditioning(
            text=self.negative_text,
            audio=_cut(self.negative_audio, window),
            pose=pose,
            reference=self.reference,
            motion=carried,
        )
        return positive, negative

    def _pose(self, window: range) -> PoseCondition | None:
        if self.pose is not None:
            return self.pose.features(window)
        return self.encoders.null_pose((len(window), *self.latent_size)) if self.encoders.has_pose else None


def _cut(audio: AudioCondition | None, window: range) -> AudioCondition | None:
    return None if audio is None else AudioCondition(tokens=audio.tokens[:, window.start : window.stop])
