"""Picture, voice, poses and prompt in; video out (paper section 3.4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omnihuman_core.activation import active_conditions
from omnihuman_core.contracts import ReferenceCondition
from omnihuman_core.model_dir import ModelComponents
from omnihuman_infer.conditioning import ClipConditions, PoseTrack
from omnihuman_infer.denoising import Denoiser
from omnihuman_infer.encoding import Encoders
from omnihuman_infer.inputs import Inputs, read_inputs
from omnihuman_infer.loading import check_directory, load_components, resolve_device, segment_latents
from omnihuman_infer.long_video import Segment, plan_segments
from omnihuman_infer.media.picture import Fit, fit_size, resize
from omnihuman_infer.media.sound import SAMPLE_RATE
from omnihuman_infer.media.video import VideoWriter
from omnihuman_infer.request import GenerateRequest, RequestError
from omnihuman_infer.speaker import region_in_video, region_map

# (segment, number of segments, steps done in it, steps of a segment)
OnProgress = Callable[[int, int, int, int], None]

# Latent frames decoded at once: bounds the memory of decoding, whatever the length of a segment.
DECODE_LATENTS = 4


@dataclass(frozen=True, kw_only=True)
class GenerationResult:
    """What was written.

    Attributes:
        path: The mp4.
        num_frames: Frames of the video.
        width: Pixels.
        height: Pixels.
        fps: Frames per second.
        notices: What the user should know, one line each.
    """

    path: Path
    num_frames: int
    width: int
    height: int
    fps: float
    notices: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Everything that is settled before the first denoising step.

    Attributes:
        num_frames: Frames of the video.
        fit: Size of the video and cut of the picture.
        segments: Denoising runs, in order.
        conditions: Conditions of all of them.
        denoiser: Sampler and guidance.
        seed: Of the noise.
        notices: What the user should know, one line each.
    """

    num_frames: int
    fit: Fit
    segments: list[Segment]
    conditions: ClipConditions
    denoiser: Denoiser
    seed: int
    notices: tuple[str, ...]


class OmniHumanPipeline:
    """Generates videos with one model.

    Example:
        >>> pipeline = OmniHumanPipeline.from_pretrained("tiny")  # doctest: +SKIP
        >>> pipeline(GenerateRequest(image="me.png", audio="me.wav", out="me.mp4"))  # doctest: +SKIP

    Attributes:
        components: VAE, backbone and encoders.
        model: Name or directory that they came from.
        device: Where they are.
        dtype: Dtype of their floating tensors.
    """

    def __init__(self, components: ModelComponents, *, model: str, device: torch.device, dtype: torch.dtype) -> None:
        self.components = components
        self.model = model
        self.device = device
        self.dtype = dtype
        self.encoders = Encoders(components, device=device, dtype=dtype)

    @classmethod
    def from_pretrained(
        cls, model: str | Path = "tiny", *, device: str = "auto", dtype: torch.dtype | None = None, ops: str = "eager"
    ) -> Self:
        """Load a model and check that its components fit each other.

        Args:
            model: Name of a shipped model, or a model directory.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
            dtype: Dtype of the weights; None takes bfloat16 on CUDA and float32 elsewhere.
            ops: Ops bundle of the backbone, such as ``eager`` or ``triton``.

        Raises:
            RequestError: one line that says what is wrong and how to mend it.
        """
        where = resolve_device(device)
        chosen = dtype or (torch.bfloat16 if where.type == "cuda" else torch.float32)
        components = load_components(str(model), device=where, dtype=chosen, ops=ops)
        return cls(components, model=str(model), device=where, dtype=chosen)

    def __call__(
        self, request: GenerateRequest, *, inputs: Inputs | None = None, on_progress: OnProgress | None = None
    ) -> GenerationResult:
        """Generate one video file.

        Args:
            request: What to generate.
            inputs: The files of the request, where they were read already.
            on_progress: Called after each denoising step.

        Raises:
            RequestError: one line that names the field and the fix; nothing was written.
        """
        clip = self.prepare(request, inputs)
        settings = self.components.generation
        size = {"width": clip.fit.width, "height": clip.fit.height}
        with VideoWriter(request.out, fps=settings.fps, sound=request.audio, model=self._name(), **size) as writer:
            for pixels in self.frames(clip, on_progress=on_progress):
                writer.write(pixels)
        return GenerationResult(
            path=request.out, num_frames=clip.num_frames, fps=settings.fps, notices=clip.notices, **size
        )

    @torch.inference_mode()
    def prepare(self, request: GenerateRequest, inputs: Inputs | None = None) -> Clip:
        """Read and encode the inputs, and settle sizes, segments and guidance.

        Raises:
            RequestError: one line that names the field and the fix.
        """
        self._check_same_model(request)
        inputs = read_inputs(request) if inputs is None else inputs
        settings, spec = self.components.generation, self.components.vae.latent_spec
        denoiser = Denoiser.from_request(request, self.components)
        keypoints = None if request.pose is None else self.encoders.read_pose(request.pose)
        num_frames, notices = self._length(request, inputs, keypoints)
        latent_frames = spec.latent_frames(spec.fit_frames(num_frames))
        total, motion = segment_latents(self.components, request.segment_frames or settings.segment_frames)
        segments = plan_segments(latent_frames, total, motion)
        fit = fit_size(
            *inputs.picture.size,
            area=settings.area,
            max_aspect=settings.max_aspect,
            size_multiple=settings.size_multiple,
        )
        conditions = self._conditions(request, inputs, keypoints, fit, frames=spec.pixel_frames(segments[-1].stop))
        if request.speaker_region is not None:
            region = region_in_video(request.speaker_region, fit, inputs.picture.size)
            denoiser = denoiser.restricted_to(region_map(region, *conditions.latent_size).to(self.device))
        return Clip(
            num_frames=num_frames,
            fit=fit,
            segments=segments,
            conditions=conditions,
            denoiser=denoiser,
            seed=request.seed,
            notices=notices,
        )

    @torch.inference_mode()
    def frames(self, clip: Clip, *, on_progress: OnProgress | None = None) -> Iterator[NDArray[np.uint8]]:
        """The video as it becomes ready, in pieces ``(T_i, H, W, 3)`` RGB; memory does not grow with its length."""
        left = clip.num_frames
        for pixels in self.components.vae.decode_stream(self._latents(clip, on_progress)):
            piece = pixels[0, :, :left]
            left -= piece.shape[1]
            if piece.shape[1]:
                yield _to_uint8(piece)

    def _latents(self, clip: Clip, on_progress: OnProgress | None) -> Iterator[Tensor]:
        """Final latents in small pieces, ``(1, C, t_i, h, w)``, one segment after the other."""
        spec = self.components.vae.latent_spec
        motion: Tensor | None = None
        for segment in clip.segments:
            positive, negative = clip.conditions.segment(segment, motion)
            shape = (1, spec.channels, segment.new_frames, *clip.conditions.latent_size)
            noise = segment_noise(clip.seed, segment.index, shape).to(self.device, self.dtype)

            def on_step(step: int, num_steps: int, index: int = segment.index) -> None:
                if on_progress is not None:
                    on_progress(index, len(clip.segments), step, num_steps)

            latents = clip.denoiser(noise, positive, negative, on_step=on_step)
            following = clip.segments[segment.index + 1].motion if segment.index + 1 < len(clip.segments) else 0
            if following:
                # A segment's own motion frames may be needed again where it makes fewer new frames than are carried.
                known = latents if motion is None else torch.cat([motion, latents], dim=2)  # (1, C, m + t, h, w)
                motion = known[:, :, -following:].clone()
            yield from torch.split(latents[:, :, : segment.keep], DECODE_LATENTS, dim=2)

    def _length(
        self, request: GenerateRequest, inputs: Inputs, keypoints: Tensor | None
    ) -> tuple[int, tuple[str, ...]]:
        """Frames of the video: those of the sound, else of the poses, else ``seconds``; and what to tell the user."""
        fps = self.components.generation.fps
        limit = None if request.seconds is None else max(1, round(request.seconds * fps))
        poses = None if keypoints is None else len(keypoints)
        if poses is not None and poses > request.max_seconds * fps:
            raise RequestError(
                f"pose: {request.pose} lasts {poses / fps:.0f} s, the limit is {request.max_seconds:g} s; "
                "cut it or raise --max-seconds"
            )
        seconds = inputs.sound_seconds
        if seconds is None:
            lengths = [length for length in (poses, limit) if length is not None]
            return min(lengths), ()
        # Rounded up, so that no sound is cut; the small number keeps 4.0 s at 100 frames.
        frames = max(1, math.ceil(seconds * fps - 1e-6))
        if poses is None or poses == frames:
            return frames, ()
        done = "the last pose is held" if poses < frames else "the rest of the poses is left out"
        return frames, (f"pose lasts {poses / fps:.2f} s and audio {seconds:.2f} s; {done}",)

    def _conditions(
        self, request: GenerateRequest, inputs: Inputs, keypoints: Tensor | None, fit: Fit, *, frames: int
    ) -> ClipConditions:
        """Encode what the request gives; what it does not give becomes the null of its encoder."""
        spec, encoders = self.components.vae.latent_spec, self.encoders
        given = {"reference"} | {name for name in ("audio", "pose") if getattr(request, name) is not None}
        active = active_conditions(given | ({"text"} if request.prompt else set()))
        self._check_taken(request)

        reference = None
        if "reference" in self.components.backbone.spec.conditions:
            pixels = torch.from_numpy(resize(inputs.picture, fit).copy()).to(self.device, self.dtype)
            video = (pixels / 127.5 - 1).permute(2, 0, 1)[None, :, None]  # (1, 3, 1, H, W)
            reference = ReferenceCondition(latents=self.components.vae.encode(video))
        text = negative_text = None
        if encoders.has_text:
            negative_text = encoders.null_text()
            text = encoders.text(request.prompt) if request.prompt and "text" in active else negative_text
        audio = negative_audio = None
        if encoders.has_audio:
            silence = torch.zeros(1, math.ceil(frames / self.components.generation.fps * SAMPLE_RATE))
            silent = encoders.audio(silence, frames)
            audio = negative_audio = encoders.null_audio(silent)
            if inputs.waveform is not None and "audio" in active:
                waveform = torch.from_numpy(inputs.waveform)[None, : silence.shape[1]]
                silence[:, : waveform.shape[1]] = waveform
                audio = encoders.audio(silence, frames)
                if _wants_silence(request):
                    negative_audio = silent
        pose = None
        if keypoints is not None and "pose" in active:
            placed = _into_video(keypoints, fit, inputs.picture.size)
            pose = PoseTrack(keypoints=placed, size=(fit.height, fit.width), encoders=encoders, spec=spec)
        return ClipConditions(
            encoders=encoders,
            latent_size=spec.latent_size(fit.height, fit.width),
            reference=reference,
            text=text,
            negative_text=negative_text,
            audio=audio,
            negative_audio=negative_audio,
            pose=pose,
        )

    def _check_taken(self, request: GenerateRequest) -> None:
        for name, has in (
            ("prompt", self.encoders.has_text),
            ("audio", self.encoders.has_audio),
            ("pose", self.encoders.has_pose),
        ):
            if getattr(request, name) and not has:
                raise RequestError(f"{name}: the model {self._name()} takes none; leave it out or choose another model")

    def _check_same_model(self, request: GenerateRequest) -> None:
        if request.model is not None and request.model != self.model:
            raise RequestError(f"model: this pipeline holds {self.model!r}, the request asks for {request.model!r}")
        if request.device is not None and resolve_device(request.device) != self.device:
            raise RequestError(f"device: this pipeline is on {self.device}, the request asks for {request.device}")

    def _name(self) -> str:
        index = self.components.index
        return f"{index.name} {index.version}"


def generate(
    request: GenerateRequest, *, inputs: Inputs | None = None, on_progress: OnProgress | None = None
) -> GenerationResult:
    """Check a request, load its model and generate; see :class:`OmniHumanPipeline` to keep the model for more.

    Raises:
        RequestError: one line that names the field and the fix; nothing was written.
    """
    inputs = read_inputs(request) if inputs is None else inputs
    model = request.model or "tiny"
    check_directory(model, request.pose)
    pipeline = OmniHumanPipeline.from_pretrained(model, device=request.device or "auto")
    return pipeline(request, inputs=inputs, on_progress=on_progress)


def segment_noise(seed: int, index: int, shape: tuple[int, ...]) -> Tensor:
    """Noise of one segment, drawn on the CPU: it depends on the seed and the segment's number, not on the device."""
    mixed = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]
    return torch.randn(shape, generator=torch.Generator().manual_seed(int(mixed)))


def _wants_silence(request: GenerateRequest) -> bool:
    if request.negative_audio == "auto":
        return request.speaker_region is not None
    return request.negative_audio == "silence"


def _into_video(keypoints: Tensor, fit: Fit, picture_size: tuple[int, int]) -> Tensor:
    """Keypoints in fractions of the picture to fractions of the video, which may show a cut of it."""
    x, y = fit.to_video(keypoints[..., 0], keypoints[..., 1], *picture_size)
    return torch.stack([x, y, keypoints[..., 2]], dim=-1)  # (T, K, 3)


def _to_uint8(pixels: Tensor) -> NDArray[np.uint8]:
    """``(3, T, H, W)`` in [-1, 1] to ``(T, H, W, 3)`` RGB."""
    scaled = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    frames: NDArray[np.uint8] = scaled.permute(1, 2, 3, 0).cpu().numpy()
    return frames
