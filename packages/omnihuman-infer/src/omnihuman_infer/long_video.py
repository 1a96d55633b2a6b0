"""Plan of a long video: segments that start from the last motion frames of the segment before (paper section 3.4).

Motion is carried as *latents*: decoding and re-encoding the last frames drifts in colour with every segment.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One denoising run, on the latent frame axis of the clip.

    Attributes:
        index: Number of the segment, from 0.
        start: First new latent frame.
        stop: End of the new latent frames; may lie beyond the clip, see :func:`plan_segments`.
        motion: Latent frames before ``start`` that are given as motion frames.
        keep: New latent frames that belong to the clip, counted from ``start``.
    """

    index: int
    start: int
    stop: int
    motion: int
    keep: int

    @property
    def window(self) -> range:
        """Latent frames that conditions must cover: motion first, then new ones."""
        return range(self.start - self.motion, self.stop)

    @property
    def new_frames(self) -> int:
        """Latent frames that are denoised."""
        return self.stop - self.start


def plan_segments(latent_frames: int, segment_latents: int, motion_latents: int) -> list[Segment]:
    """Cover a clip with segments of one length, motion frames included.

    Every segment spans exactly ``segment_latents`` latent frames, the length the model was trained at: the first has no
    motion frames and that many new ones, each later one has ``motion_latents`` fewer new ones. What the last segment
    makes beyond the clip is thrown away. So no run is shorter than the model knows, all runs share their shapes, and
    what is generated at the start, under the same conditions, does not depend on how long the clip is.

    Args:
        latent_frames: Latent frames of the clip.
        segment_latents: Latent frames of one segment, motion included.
        motion_latents: Latent frames carried over.

    Raises:
        ValueError: a length is not positive, or motion leaves no room for new frames.
    """
    if latent_frames < 1:
        raise ValueError(f"latent_frames must be at least 1, got {latent_frames}")
    if not 0 <= motion_latents < segment_latents:
        raise ValueError(
            f"segment_latents ({segment_latents}) must exceed motion_latents ({motion_latents}); use longer segments"
        )
    segments: list[Segment] = []
    start = 0
    while start < latent_frames:
        motion = motion_latents if segments else 0
        stop = start + segment_latents - motion
        keep = min(stop, latent_frames) - start
        segments.append(Segment(index=len(segments), start=start, stop=stop, motion=motion, keep=keep))
        start = stop
    return segments
