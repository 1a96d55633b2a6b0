"""Loads a model directory and checks that its components fit each other, before any work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from omnihuman_core.contracts import NUM_KEYPOINTS, SAMPLE_RATE
from omnihuman_core.model_dir import GenerationSettings, ModelComponents, load_component, load_model, read_index
from omnihuman_core.ops import choose_ops
from omnihuman_core.plugins import PluginError
from omnihuman_infer.denoising import check_guidance, check_sampler
from omnihuman_infer.encoding import Encoders, read_pose
from omnihuman_infer.fields import ModelError
from omnihuman_infer.media.picture import free_size
from omnihuman_infer.presets import model_directory
from omnihuman_infer.request import GenerateRequest, RequestError


def resolve_device(device: str) -> torch.device:
    """``auto`` takes CUDA where there is a GPU and the CPU otherwise.

    Raises:
        RequestError: the device is not there.
    """
    if device == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise RequestError(f"device: must be auto, cpu, cuda, cuda:N or mps, got {device!r}") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise RequestError(
            f"device: {device} is not there ({torch.cuda.device_count()} CUDA devices); use --device cpu"
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise RequestError("device: mps is not there; use --device cpu")
    return torch.device("cuda", chosen.index or 0) if chosen.type == "cuda" else chosen


@contextmanager
def enough_memory(device: torch.device) -> Iterator[None]:
    """Say in one line that a device has too little memory for what is done inside.

    Raises:
        RequestError: it has.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise RequestError(
            f"device: {device} has too little free memory for this; ask for fewer --segment-frames, take a smaller "
            "model, or end what else uses it (omnihuman-infer doctor says how much is free)"
        ) from None


def check_directory(model: str, request: GenerateRequest) -> None:
    """Check a model's index, and what of a request its settings and its pose extractor decide, without its weights.

    Raises:
        RequestError: one line that names the field and the fix.
    """
    directory = model_directory(model)
    try:
        index = read_index(directory)
        wanted = request.pose is not None and "pose_extractor" in index.components
        extractor = load_component(directory, "pose_extractor") if wanted else None
    except ValueError as error:
        raise _model_error(error) from None
    settings = index.generation
    _check_settings(settings)
    if request.sampler is not None:
        check_sampler(request.sampler)
    if request.aspect is not None:
        free_size(
            request.aspect, area=settings.area, max_aspect=settings.max_aspect, size_multiple=settings.size_multiple
        )
    if request.captioner is not None and "text_extractor" not in index.components:
        raise RequestError(f"captioner: the model {index.name} lacks text_extractor; leave it out")
    if request.pose is not None:
        read_pose(request.pose, extractor, fps=settings.fps)


def load_components(
    model: str, *, device: torch.device, dtype: torch.dtype, ops: str = "eager", attention: str = "auto"
) -> ModelComponents:
    """Load a shipped model or a directory, and check that it can generate.

    Args:
        model: Name or directory.
        device: Where it goes.
        dtype: Dtype of the weights.
        ops: Ops bundle of the backbone.
        attention: Its attention backend, or ``auto``.

    Raises:
        ModelError: one line that names the component and the fix.
        RequestError: there are no such ops, or they cannot run on the device.
    """
    directory = model_directory(model)
    try:
        chosen = choose_ops(ops, attention=attention, device=device, dtype=dtype)
    except PluginError as error:
        raise RequestError(f"ops: {error}") from None
    except ValueError as error:
        raise RequestError(f"attention: {error}") from None
    try:
        components = load_model(directory, device=device, dtype=dtype, ops=chosen)
    except ValueError as error:
        raise _model_error(error) from None
    check_fit(components, device=device, dtype=dtype)
    return components


def check_fit(components: ModelComponents, *, device: torch.device, dtype: torch.dtype) -> None:
    """Compare what the components declare, and what the encoders make of one tiny input.

    Raises:
        ModelError: two components do not fit each other or the generation settings.
    """
    spec, settings, latents = components.backbone.spec, components.generation, components.vae.latent_spec
    if latents.channels != spec.latent_channels:
        raise ModelError(
            f"model: the vae makes {latents.channels} latent channels, the backbone takes {spec.latent_channels}; "
            "use components that were trained together"
        )
    multiple = latents.spatial_stride * spec.spatial_multiple
    if settings.size_multiple % multiple or settings.size_multiple % 2:
        raise ModelError(
            f"model: generation.size_multiple is {settings.size_multiple}; vae and backbone need an even multiple of "
            f"{multiple}"
        )
    _check_settings(settings)
    segment_latents(components, settings.segment_frames)
    try:
        _check_encoders(components, Encoders(components, device=device, dtype=dtype), multiple)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError) as error:
        raise error if isinstance(error, RequestError) else _model_error(error) from None


def segment_latents(components: ModelComponents, segment_frames: int) -> tuple[int, int]:
    """Latent frames of one segment, and of the motion frames in it.

    Raises:
        ModelError: the lengths fit neither the strides of the VAE nor the multiples of the backbone.
    """
    spec, settings, latents = components.backbone.spec, components.generation, components.vae.latent_spec
    carries = settings.motion_frames > 0 and "motion" in spec.conditions
    try:
        motion = latents.motion_latent_frames(settings.motion_frames) if carries else 0
    except ValueError as error:
        raise ModelError(f"model: generation.motion_frames: {error}") from None
    try:
        total = latents.latent_frames(segment_frames)
    except ValueError as error:
        raise ModelError(f"segment_frames: {error}") from None
    if total % spec.temporal_multiple or motion % spec.temporal_multiple or motion >= total:
        raise ModelError(
            f"segment_frames: {segment_frames} gives segments of {total} latent frames with {motion} of motion; the "
            f"backbone needs multiples of {spec.temporal_multiple}, and segments longer than their motion"
        )
    return total, motion


def _check_settings(settings: GenerationSettings) -> None:
    """Names that the core of a model directory does not know."""
    try:
        check_sampler(settings.sampler)
        check_guidance(settings.guidance_scale, settings.guidance_schedule, settings.guidance_end_scale)
    except RequestError as error:
        raise ModelError(f"model: generation.{error}") from None


@torch.no_grad()
def _check_encoders(components: ModelComponents, encoders: Encoders, side: int) -> None:
    spec, latents = components.backbone.spec, components.vae.latent_spec
    frames = latents.pixel_frames(2)
    if encoders.has_text:
        text = encoders.text("")
        _check_width("text", text.tokens.shape[-1], spec.text_dim)
        pooled = None if text.pooled is None else text.pooled.shape[-1]
        _check_width("text", pooled, spec.pooled_dim, what="a pooled width")
        encoders.null_text(text)
    if encoders.has_audio:
        rate = getattr(getattr(components.audio_extractor, "config", None), "sample_rate", SAMPLE_RATE)
        if rate != SAMPLE_RATE:
            raise ModelError(
                f"model: audio_extractor takes {rate} Hz, sound is given at {SAMPLE_RATE} Hz; use another one"
            )
        audio = encoders.audio(torch.zeros(1, SAMPLE_RATE, dtype=torch.float32), frames)
        _check_width("audio", audio.tokens.shape[-1], spec.audio_dim)
        _check_positions("audio", (audio.tokens.shape[1],), (2,))
        encoders.null_audio(audio)
    if encoders.has_pose:
        nobody = torch.zeros(frames, NUM_KEYPOINTS, 3, dtype=torch.float32)
        features = encoders.pose(nobody, (side, side)).features
        _check_width("pose", features.shape[1], spec.pose_channels)
        _check_positions("pose", tuple(features.shape[2:]), (2, *latents.latent_size(side, side)))


def _check_width(name: str, got: int | None, wanted: int | None, *, what: str = "width") -> None:
    if got != wanted:
        raise ModelError(f"model: {name}_encoder makes {what} {got}, the backbone takes {wanted}; use a matching one")


def _check_positions(name: str, got: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if got != wanted:
        raise ModelError(
            f"model: {name}_encoder makes {got} latent positions where the vae makes {wanted}; their strides differ"
        )


def _model_error(error: Exception) -> ModelError:
    return ModelError(f"model: {' '.join(str(error).split())}")
