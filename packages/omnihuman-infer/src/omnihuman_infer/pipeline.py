"""Picture, voice, poses and prompt in; video out (paper section 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omnihuman_core.model_dir import ModelComponents
from omnihuman_infer.captioning import HeldCaptioner, with_caption
from omnihuman_infer.encoding import Encoders
from omnihuman_infer.inputs import Inputs, read_inputs
from omnihuman_infer.loading import check_directory, enough_memory, load_components, resolve_device
from omnihuman_infer.media.video import VideoWriter
from omnihuman_infer.preparation import Clip, prepare_clip
from omnihuman_infer.request import GenerateRequest, RequestError

# (segment, number of segments, steps done in it, steps of a segment)
OnProgress = Callable[[int, int, int, int], None]

# Called with a clip before its first denoising step.
OnPrepared = Callable[[Clip], None]

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
        prompt: What the text said: the prompt, a captioner's, or the model's default; empty for "no text".
        notices: What the user should know, one line each.
    """

    path: Path
    num_frames: int
    width: int
    height: int
    fps: float
    prompt: str
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
        encoders: What turns the inputs of a request into conditions.
    """

    def __init__(self, components: ModelComponents, *, model: str, device: torch.device, dtype: torch.dtype) -> None:
        self.components = components
        self.model = model
        self.device = device
        self.dtype = dtype
        self.encoders: Encoders = Encoders(components, device=device, dtype=dtype)
        self._captioner = HeldCaptioner()

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = "tiny",
        *,
        device: str = "auto",
        dtype: torch.dtype | None = None,
        ops: str = "eager",
        attention: str = "auto",
    ) -> Self:
        """Load a model and check that its components fit each other.

        Args:
            model: Name of a shipped model, or a model directory.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
            dtype: Dtype of the weights; None takes bfloat16 on CUDA and float32 elsewhere.
            ops: Ops bundle of the backbone, such as ``eager`` or ``triton``.
            attention: Attention backend of the backbone; ``auto`` takes the fastest that was measured on the device.

        Raises:
            RequestError: one line that says what is wrong and how to mend it.
        """
        where = resolve_device(device)
        chosen = dtype or (torch.bfloat16 if where.type == "cuda" else torch.float32)
        with enough_memory(where):
            components = load_components(str(model), device=where, dtype=chosen, ops=ops, attention=attention)
        return cls(components, model=str(model), device=where, dtype=chosen)

    def __call__(
        self,
        request: GenerateRequest,
        *,
        inputs: Inputs | None = None,
        on_prepared: OnPrepared | None = None,
        on_progress: OnProgress | None = None,
    ) -> GenerationResult:
        """Generate one video file.

        Args:
            request: What to generate.
            inputs: The files of the request, where they were read already.
            on_prepared: Called before the first denoising step with what is settled by then, the notices among it.
            on_progress: Called after each denoising step, with the number of the segment, that of all segments, and the
                steps done and to do in it; what it raises ends the call, and nothing is written.

        Raises:
            RequestError: one line that names the field and the fix; nothing was written.
        """
        self._check_same_model(request)
        clip = self.prepare(request, read_inputs(request) if inputs is None else inputs)
        if on_prepared is not None:
            on_prepared(clip)
        settings = self.components.generation
        size = {"width": clip.fit.width, "height": clip.fit.height}
        with VideoWriter(request.out, fps=settings.fps, sound=request.audio, model=self._name(), **size) as writer:
            for pixels in self.frames(clip, on_progress=on_progress):
                writer.write(pixels)
        return GenerationResult(
            path=request.out,
            num_frames=clip.num_frames,
            fps=settings.fps,
            prompt=clip.prompt,
            notices=clip.notices,
            **size,
        )

    def prepare(self, request: GenerateRequest, inputs: Inputs | None = None) -> Clip:
        """Read and encode the inputs, and settle sizes, segments and guidance; ``request.out`` plays no part in it.

        Args:
            request: What to generate.
            inputs: The files of the request, where they were read already.

        Raises:
            RequestError: one line that names the field and the fix.
        """
        self._check_same_model(request)
        inputs = read_inputs(request, writes=False) if inputs is None else inputs.of(request)
        request = with_caption(request, inputs.picture, device=self.device, held=self._captioner)
        with enough_memory(self.device):
            return prepare_clip(request, inputs, self.components, self.encoders)

    @torch.inference_mode()
    def frames(self, clip: Clip, *, on_progress: OnProgress | None = None) -> Iterator[NDArray[np.uint8]]:
        """The video as it becomes ready, in pieces ``(T_i, H, W, 3)`` RGB; memory does not grow with its length.

        Nothing is computed between two pieces, and nothing more once the iterator is closed or let go.

        Args:
            clip: What :meth:`prepare` gave; it may be used again.
            on_progress: Called after each denoising step; what it raises ends the iteration and comes out of it.

        Raises:
            RequestError: the device has too little memory.
        """
        left = clip.num_frames
        with enough_memory(self.device):
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

    def _check_same_model(self, request: GenerateRequest) -> None:
        if request.model is not None and Path(request.model) != Path(self.model):
            raise RequestError(f"model: this pipeline holds {self.model!r}, the request asks for {request.model!r}")
        if request.device is not None and resolve_device(request.device) != self.device:
            raise RequestError(f"device: this pipeline is on {self.device}, the request asks for {request.device}")

    def _name(self) -> str:
        index = self.components.index
        return f"{index.name} {index.version}"


def generate(
    request: GenerateRequest,
    *,
    inputs: Inputs | None = None,
    dtype: torch.dtype | None = None,
    ops: str = "eager",
    attention: str = "auto",
    on_prepared: OnPrepared | None = None,
    on_progress: OnProgress | None = None,
) -> GenerationResult:
    """Check a request, load its model and generate; see :class:`OmniHumanPipeline` to keep the model for more.

    Args:
        request: What to generate, with the model and the device.
        inputs: The files of the request, where they were read already.
        dtype: As in :meth:`OmniHumanPipeline.from_pretrained`.
        ops: Likewise.
        attention: Likewise.
        on_prepared: As in :meth:`OmniHumanPipeline.__call__`.
        on_progress: Likewise.

    Raises:
        RequestError: one line that names the field and the fix; nothing was written.
    """
    inputs = read_inputs(request) if inputs is None else inputs
    model = request.model or "tiny"
    check_directory(model, request)
    # Before the model is loaded, so that a large captioner and a large model need not fit the memory together.
    request = with_caption(request, inputs.picture)
    device = request.device or "auto"
    pipeline = OmniHumanPipeline.from_pretrained(model, device=device, dtype=dtype, ops=ops, attention=attention)
    return pipeline(request, inputs=inputs, on_prepared=on_prepared, on_progress=on_progress)


def segment_noise(seed: int, index: int, shape: tuple[int, ...]) -> Tensor:
    """Noise of one segment, drawn on the CPU: it depends on the seed and the segment's number, not on the device."""
    mixed = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]
    return torch.randn(shape, generator=torch.Generator().manual_seed(int(mixed)), dtype=torch.float32)


def _to_uint8(pixels: Tensor) -> NDArray[np.uint8]:
    """``(3, T, H, W)`` in [-1, 1] to ``(T, H, W, 3)`` RGB."""
    scaled = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    frames: NDArray[np.uint8] = scaled.permute(1, 2, 3, 0).cpu().numpy()
    return frames
