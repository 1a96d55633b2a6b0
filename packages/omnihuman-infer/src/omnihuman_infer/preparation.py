"""Settles everything about a clip before its first denoising step: length, size, segments, conditions, guidance."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from omnihuman_core.activation import active_conditions
from omnihuman_core.contracts import ReferenceCondition
from omnihuman_core.dropout import null_latents
from omnihuman_core.model_dir import GenerationSettings, ModelComponents
from omnihuman_infer.conditioning import ClipConditions, PoseTrack
from omnihuman_infer.denoising import Denoiser
from omnihuman_infer.encoding import Encoders
from omnihuman_infer.fields import ModelError
from omnihuman_infer.inputs import Inputs
from omnihuman_infer.loading import segment_latents
from omnihuman_infer.long_video import Segment, plan_segments
from omnihuman_infer.media.picture import Fit, fit_size, free_size, resize
from omnihuman_infer.media.sound import SAMPLE_RATE
from omnihuman_infer.request import GenerateRequest, RequestError
from omnihuman_infer.speaker import region_in_video, region_map

# Components that come from published weights and may be added to a model; the others are trained with it.
PUBLISHED = frozenset({"audio_extractor", "text_extractor", "text_encoder"})
# Field of a request -> the condition that it becomes.
TAKEN_AS = {"image": "reference", "captioner": "text", "prompt": "text", "audio": "audio", "pose": "pose"}


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
        prompt: What the text says; empty for "no text".
        notices: What the user should know, one line each.
    """

    num_frames: int
    fit: Fit
    segments: list[Segment]
    conditions: ClipConditions
    denoiser: Denoiser
    seed: int
    prompt: str
    notices: tuple[str, ...]


@torch.inference_mode()
def prepare_clip(request: GenerateRequest, inputs: Inputs, components: ModelComponents, encoders: Encoders) -> Clip:
    """Encode the inputs of a request, and settle sizes, segments and guidance.

    Raises:
        RequestError: one line that names the field and the fix.
    """
    settings, spec = components.generation, components.vae.latent_spec
    denoiser = Denoiser.from_request(request, components)
    _check_taken(request, encoders, components.index.name)
    prompt, said = _prompt(request, encoders, settings.default_prompt)
    request = replace(request, prompt=prompt)
    keypoints = None if request.pose is None else encoders.read_pose(request.pose)
    num_frames, notices = clip_length(request, inputs, keypoints, fps=settings.fps)
    latent_frames = spec.latent_frames(spec.fit_frames(num_frames))
    try:
        lengths = segment_latents(components, request.segment_frames or settings.segment_frames)
    except ModelError as error:
        # The request's own length is no fault of the model.
        raise error if request.segment_frames is None else RequestError(str(error)) from None
    segments = plan_segments(latent_frames, *lengths)
    fit, shown = _fit(request, inputs, settings)
    frames = spec.pixel_frames(segments[-1].stop)
    if keypoints is not None:
        keypoints = _into_video(keypoints, fit, shown)
    conditions = _encode(request, inputs, keypoints, fit, components, encoders, frames)
    if request.speaker_region is not None:
        region = region_in_video(request.speaker_region, fit, shown)
        denoiser = denoiser.restricted_to(region_map(region, *conditions.latent_size).to(encoders.device))
    return Clip(
        num_frames=num_frames,
        fit=fit,
        segments=segments,
        conditions=conditions,
        denoiser=denoiser,
        seed=request.seed,
        prompt=prompt,
        notices=said + notices,
    )


def clip_length(
    request: GenerateRequest, inputs: Inputs, keypoints: Tensor | None, *, fps: float
) -> tuple[int, tuple[str, ...]]:
    """Frames of the video, and what to tell the user.

    The video is as long as the sound; shorter poses hold their last frame, longer ones are cut. Without sound it is as
    long as the poses, without either ``seconds``, which otherwise is an upper limit.

    Raises:
        RequestError: the poses last longer than ``max_seconds``.
    """
    poses = None if keypoints is None else len(keypoints)
    if poses is not None and poses > request.max_seconds * fps:
        raise RequestError(
            f"pose: {request.pose} lasts {poses / fps:.0f} s, the limit is {request.max_seconds:g} s; "
            "cut it or raise --max-seconds"
        )
    seconds = inputs.sound_seconds
    if seconds is None:
        limit = None if request.seconds is None else max(1, round(request.seconds * fps))
        return min(length for length in (poses, limit) if length is not None), ()
    # Rounded up, so that no sound is cut; the small number keeps 4.0 s at 100 frames.
    frames = max(1, math.ceil(seconds * fps - 1e-6))
    if poses is None or poses == frames:
        return frames, ()
    done = "the last pose is held" if poses < frames else "the rest of the poses is left out"
    return frames, (f"pose lasts {poses / fps:.2f} s and audio {seconds:.2f} s; {done}",)


def _fit(request: GenerateRequest, inputs: Inputs, settings: GenerationSettings) -> tuple[Fit, tuple[int, int]]:
    """Size of the video, and ``(width, height)`` of what keypoints and the speaker region are fractions of."""
    area, limit, multiple = settings.area, settings.max_aspect, settings.size_multiple
    if inputs.picture is not None:
        fit = fit_size(*inputs.picture.size, area=area, max_aspect=limit, size_multiple=multiple)
        return fit, inputs.picture.size
    aspect = 1.0 if request.aspect is None else request.aspect
    fit = free_size(aspect, area=area, max_aspect=limit, size_multiple=multiple)
    return fit, (fit.width, fit.height)


def _encode(
    request: GenerateRequest,
    inputs: Inputs,
    keypoints: Tensor | None,
    fit: Fit,
    components: ModelComponents,
    encoders: Encoders,
    frames: int,
) -> ClipConditions:
    """Encode what the request gives; what it does not give becomes the null of its encoder."""
    spec = components.vae.latent_spec
    given = {"reference": request.image, "text": request.prompt, "audio": request.audio, "pose": request.pose}
    active = active_conditions({name for name, value in given.items() if value})
    reference = _reference(inputs, fit, components, encoders) if encoders.accepts("reference") else None
    text = negative_text = None
    if encoders.has_text:
        words = encoders.text(request.prompt or "")
        negative_text = encoders.null_text(words)
        # Without a prompt the text is active and says nothing.
        text = words if request.prompt and "text" in active else negative_text
    audio = negative_audio = None
    if encoders.has_audio:
        samples = math.ceil(frames / components.generation.fps * SAMPLE_RATE)
        silence = torch.zeros(1, samples, dtype=torch.float32)
        waveform = silence
        if inputs.waveform is not None and "audio" in active:
            # Padded with silence: segments may reach past the end of the sound.
            # A copy: what a program hands in may be read-only, which torch does not know.
            sound = torch.tensor(inputs.waveform[: silence.shape[1]])
            waveform = pad(sound, (0, silence.shape[1] - len(sound)))[None]
        heard = encoders.audio(waveform, frames)
        null = encoders.null_audio(heard)
        audio = null if waveform is silence else heard
        wants_silence = waveform is not silence and _wants_silence(request)
        negative_audio = encoders.audio(silence, frames) if wants_silence else null
    pose = None
    if keypoints is not None and "pose" in active:
        pose = PoseTrack(keypoints=keypoints, size=(fit.height, fit.width), encoders=encoders, spec=spec)
    return ClipConditions(
        encoders=encoders,
        latent_size=spec.latent_size(fit.height, fit.width),
        reference=reference,
        # Text encoders fill up to a fixed length, which would cost as much as words at every step.
        text=None if text is None else text.trimmed(),
        negative_text=None if negative_text is None else negative_text.trimmed(),
        audio=audio,
        negative_audio=negative_audio,
        pose=pose,
    )


def _reference(inputs: Inputs, fit: Fit, components: ModelComponents, encoders: Encoders) -> ReferenceCondition:
    """The picture, or the null that stands for a dropped one in training, ``(1, C, 1, h, w)``."""
    spec = components.vae.latent_spec
    if inputs.picture is None:
        shape = (1, *spec.latent_shape(1, fit.height, fit.width))
        return null_latents(
            ReferenceCondition(latents=torch.empty(shape, device=encoders.device, dtype=encoders.dtype))
        )
    pixels = torch.from_numpy(resize(inputs.picture, fit).copy()).float() / 127.5 - 1
    video = pixels.permute(2, 0, 1)[None, :, None].to(encoders.device, encoders.dtype)  # (1, 3, 1, H, W)
    return ReferenceCondition(latents=components.vae.encode(video))


def _prompt(request: GenerateRequest, encoders: Encoders, default: str) -> tuple[str, tuple[str, ...]]:
    """The prompt, and what to tell a user who gave none."""
    if request.prompt is not None or not encoders.has_text:
        return request.prompt or "", ()
    stands_in = f'the prompt is "{default}"' if default else "the text says nothing"
    return default, (f"no prompt and no captioner: {stands_in}; give --prompt or --captioner",)


def _check_taken(request: GenerateRequest, encoders: Encoders, model: str) -> None:
    for name, condition in TAKEN_AS.items():
        if not getattr(request, name):
            continue
        if not encoders.accepts(condition):
            raise RequestError(f"{name}: the model {model} takes none; leave it out or choose another model")
        missing = encoders.missing(condition)
        if missing:
            lacks = f"{name}: the model {model} lacks {' and '.join(missing)}"
            if not PUBLISHED.issuperset(missing):
                raise RequestError(f"{lacks}; leave it out or choose another model")
            flags = " ".join(f"--component {part}" for part in missing)
            raise RequestError(f"{lacks}; omnihuman-infer convert SRC --out DIR {flags} adds what is missing")


def _wants_silence(request: GenerateRequest) -> bool:
    if request.negative_audio == "auto":
        return request.speaker_region is not None
    return request.negative_audio == "silence"


def _into_video(keypoints: Tensor, fit: Fit, picture_size: tuple[int, int]) -> Tensor:
    """Keypoints in fractions of the picture to fractions of the video, which may show a cut of it."""
    x, y = fit.to_video(keypoints[..., 0], keypoints[..., 1], *picture_size)
    return torch.stack([x, y, keypoints[..., 2]], dim=-1)  # (T, K, 3)
