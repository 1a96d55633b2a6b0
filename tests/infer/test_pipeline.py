import dataclasses
import gc
import logging
import random
import signal
import warnings
import wave
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from omnihuman_infer import GenerateRequest, ModelError, OmniHumanPipeline, RequestError
from omnihuman_infer.inputs import read_inputs
from omnihuman_infer.pipeline import segment_noise

from .files import voice, write_picture, write_wav


def frames(pipeline: OmniHumanPipeline, request: GenerateRequest) -> np.ndarray:
    return np.concatenate(list(pipeline.frames(pipeline.prepare(request))))


def latents(pipeline: OmniHumanPipeline, request: GenerateRequest) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat(list(pipeline._latents(pipeline.prepare(request), None)), dim=2)


def test_writes_a_video_as_long_as_the_sound(toy: OmniHumanPipeline, request_: GenerateRequest) -> None:
    steps = []
    result = toy(request_, on_progress=lambda *step: steps.append(step))
    assert (result.path, result.num_frames, result.fps, result.notices) == (request_.out, 25, 25.0, ())
    with av.open(str(request_.out)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (video.frames, video.average_rate, video.width, video.height) == (25, 25, 48, 48)
        assert float(audio.duration * audio.time_base) == pytest.approx(1.0, abs=0.1)
    # 25 frames are 7 latent frames: 5 in the first segment, 3 more beside 2 of motion in the second.
    assert steps == [(0, 2, 1, 2), (0, 2, 2, 2), (1, 2, 1, 2), (1, 2, 2, 2)]


def test_same_seed_gives_the_same_file(toy: OmniHumanPipeline, request_: GenerateRequest, tmp_path: Path) -> None:
    files = [
        toy(dataclasses.replace(request_, out=tmp_path / f"{name}.mp4", seed=seed)).path.read_bytes()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_low_precision(toy_dir: Path, request_: GenerateRequest) -> None:
    pipeline = OmniHumanPipeline.from_pretrained(toy_dir, device="cpu", dtype=torch.bfloat16)
    exact = OmniHumanPipeline.from_pretrained(toy_dir, device="cpu")
    short = dataclasses.replace(request_, seconds=0.4, num_steps=1)
    rough, fine = latents(pipeline, short), latents(exact, short)
    assert rough.dtype == torch.bfloat16
    # bfloat16 carries 8 bits: a few percent over a whole network.
    assert float((rough.float() - fine).norm() / fine.norm()) < 0.05


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_default_dtype_of_the_program_changes_nothing(
    toy: OmniHumanPipeline, toy_dir: Path, request_: GenerateRequest, tmp_path: Path, default: torch.dtype
) -> None:
    np.savez(tmp_path / "pose.npz", keypoints=np.full((10, 133, 3), 0.5), fps=25.0)
    changes = {"num_steps": 1, "seconds": 0.4, "pose": tmp_path / "pose.npz", "speaker_region": (0.0, 0.0, 0.5, 1.0)}
    request = dataclasses.replace(request_, **changes)
    want = frames(toy, request)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(default)
        got = frames(OmniHumanPipeline.from_pretrained(toy_dir, device="cpu"), request)
    finally:
        torch.set_default_dtype(before)
    assert np.array_equal(got, want)


def test_requests_in_threads_do_not_meet(toy: OmniHumanPipeline, request_: GenerateRequest) -> None:
    changes = (
        {},
        {"seed": 1},
        {"seconds": 0.4},
        {"audio": None, "seconds": 0.6},
        {"guidance_scale": 1.0, "prompt": "ho"},
    )
    requests = [dataclasses.replace(request_, **change) for change in changes]
    alone = [frames(toy, request) for request in requests]
    with ThreadPoolExecutor(len(requests)) as threads:
        together = list(threads.map(lambda request: frames(toy, request), requests))
    for mine, others in zip(alone, together, strict=True):
        assert np.array_equal(mine, others)


def test_nothing_of_the_process_is_changed_and_memory_is_given_back(toy_dir: Path, request_: GenerateRequest) -> None:
    def settings() -> tuple[object, ...]:
        return (
            torch.get_rng_state().tolist(),
            random.getstate(),
            str(np.random.get_state()),
            np.geterr(),
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
            (logging.getLogger().level, list(logging.getLogger().handlers)),
            list(warnings.filters),
        )

    before = settings()
    pipeline = OmniHumanPipeline.from_pretrained(toy_dir, device="cpu")
    pipeline(dataclasses.replace(request_, num_steps=1))
    pieces = pipeline.frames(pipeline.prepare(request_))
    next(pieces)
    # Between two pieces the program computes as it likes.
    assert settings() == before
    gone = [weakref.ref(part) for part in (pipeline, pipeline.components.vae, pipeline.components.backbone)]
    gc.disable()
    try:
        del pieces, pipeline
        assert [part() for part in gone] == [None] * 3
    finally:
        gc.enable()
    assert settings() == before


def test_noise_depends_on_seed_and_segment_only() -> None:
    before = torch.get_rng_state()
    drawn = [segment_noise(seed, index, (1, 4, 3, 8, 8)) for seed in (0, 1, 2**63 - 1) for index in (0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn[0], segment_noise(0, 0, (1, 4, 3, 8, 8)))
    for i, one in enumerate(drawn):
        assert abs(float(one.mean())) < 0.15
        assert abs(float(one.std()) - 1) < 0.1
        for other in drawn[i + 1 :]:
            assert abs(float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])) < 0.15


@pytest.mark.parametrize(("seconds", "expected"), [(0.1, 3), (0.68, 17), (0.69, 18), (1.0, 25), (2.0, 50)])
def test_length_follows_the_sound(
    toy: OmniHumanPipeline, request_: GenerateRequest, tmp_path: Path, seconds: float, expected: int
) -> None:
    request = dataclasses.replace(request_, audio=write_wav(tmp_path / "v.wav", voice(seconds)), num_steps=1)
    assert len(frames(toy, request)) == expected


def test_seconds_without_sound_and_as_a_limit(toy: OmniHumanPipeline, request_: GenerateRequest) -> None:
    assert len(frames(toy, dataclasses.replace(request_, audio=None, seconds=0.4))) == 10
    assert len(frames(toy, dataclasses.replace(request_, seconds=0.4))) == 10
    assert len(frames(toy, dataclasses.replace(request_, seconds=100.0))) == 25


def test_start_does_not_depend_on_the_length(toy: OmniHumanPipeline, request_: GenerateRequest) -> None:
    short = frames(toy, dataclasses.replace(request_, audio=None, seconds=0.4))
    long = frames(toy, dataclasses.replace(request_, audio=None, seconds=2.0))
    # Both are rounded to 8 bits after streams of different pieces.
    assert np.abs(short.astype(int) - long[: len(short)].astype(int)).max() <= 1


@pytest.mark.parametrize("size", [(192, 96), (96, 192), (100, 100)])
def test_video_has_the_aspect_of_the_picture(
    toy: OmniHumanPipeline, request_: GenerateRequest, tmp_path: Path, size: tuple[int, int]
) -> None:
    picture = write_picture(tmp_path / "wide.png", *size)
    result = toy(dataclasses.replace(request_, image=picture, num_steps=1))
    assert result.width / result.height == pytest.approx(size[0] / size[1], rel=0.01)
    assert result.width % 16 == result.height % 16 == 0


def test_every_condition_has_an_effect(toy: OmniHumanPipeline, request_: GenerateRequest, tmp_path: Path) -> None:
    plain = latents(toy, request_)
    other_voice = write_wav(tmp_path / "other.wav", voice(1.0)[::-1])
    for change in (
        {"prompt": "two words"},
        {"prompt": None},
        {"audio": other_voice},
        {"image": write_picture(tmp_path / "other.png", 97, 96)},
        {"guidance_scale": 1.0},
        {"guidance_schedule": "cosine"},
        {"negative_audio": "silence"},
        {"num_steps": 3},
        {"sampler": "heun"},
        {"segment_frames": 21},
    ):
        changed = latents(toy, dataclasses.replace(request_, **change))
        assert changed.shape == plain.shape, change
        assert not torch.allclose(changed, plain, atol=1e-4), change


def test_segments_carry_latents(toy: OmniHumanPipeline, request_: GenerateRequest) -> None:
    clip = toy.prepare(dataclasses.replace(request_, audio=None, seconds=1.5))
    seen = []

    class Spy:
        def __call__(self, noise, positive, negative, *, on_step=None):
            seen.append((positive, negative))
            return noise

    made = torch.cat(list(toy._latents(dataclasses.replace(clip, denoiser=Spy()), None)), dim=2)
    assert [positive.motion is None for positive, _ in seen] == [True, False, False]
    for (positive, negative), segment in zip(seen[1:], clip.segments[1:], strict=True):
        carried = made[:, :, segment.start - segment.motion : segment.start]
        assert torch.equal(positive.motion.latents, carried)
        assert torch.equal(negative.motion.latents, carried)
        # Time-bound conditions cover motion and video.
        assert positive.audio.tokens.shape[1] == positive.pose.features.shape[2] == len(segment.window)


def test_negative_conditions(toy: OmniHumanPipeline, request_: GenerateRequest) -> None:
    def first(**change: object):
        clip = toy.prepare(dataclasses.replace(request_, **change))
        return clip.conditions.segment(clip.segments[0], None)

    positive, negative = first()
    encoder = toy.components.audio_encoder
    assert torch.equal(negative.audio.tokens, encoder.null(positive.audio).tokens)
    words = toy.encoders.text(request_.prompt)
    assert torch.equal(negative.text.tokens, toy.encoders.null_text(words).trimmed().tokens)
    # No step pays for what fills a prompt up to the encoder's length.
    assert positive.text.tokens.shape[1] == int(words.mask.sum()) < words.tokens.shape[1]
    assert not positive.text.padded
    assert negative.reference is positive.reference
    assert negative.pose is positive.pose
    # A region turns the negative into silence: outside it nobody speaks.
    silent_positive, _ = first(negative_audio="null", speaker_region=(0.0, 0.0, 0.5, 1.0))
    _, silent = first(speaker_region=(0.0, 0.0, 0.5, 1.0))
    assert torch.equal(silent_positive.audio.tokens, positive.audio.tokens)
    frames_ = toy.components.vae.latent_spec.pixel_frames(5)
    expected = toy.encoders.audio(torch.zeros(1, 16_000), frames_).tokens
    torch.testing.assert_close(silent.audio.tokens, expected)
    # Without a prompt, text is at its null in both.
    positive, negative = first(prompt=None)
    assert torch.equal(positive.text.tokens, negative.text.tokens)


def test_outside_the_region_the_prediction_is_the_negative_one(
    toy: OmniHumanPipeline, request_: GenerateRequest
) -> None:
    """Paper section 3.4: guidance affects the region of the speaker only, exactly."""
    one_step = dataclasses.replace(request_, num_steps=1, seconds=0.6)
    unguided = latents(toy, dataclasses.replace(one_step, guidance_scale=0.0, negative_audio="silence"))
    limited = latents(toy, dataclasses.replace(one_step, guidance_scale=6.5, speaker_region=(0.0, 0.0, 0.5, 1.0)))
    half = unguided.shape[-1] // 2
    assert torch.equal(limited[..., half:], unguided[..., half:])
    assert not torch.allclose(limited[..., :half], unguided[..., :half], atol=1e-3)
    everywhere = latents(toy, dataclasses.replace(one_step, guidance_scale=6.5, negative_audio="silence"))
    assert torch.equal(limited[..., :half], everywhere[..., :half])


def test_region_too_small_for_the_model(toy: OmniHumanPipeline, request_: GenerateRequest) -> None:
    with pytest.raises(RequestError, match=r"^speaker_region: covers none"):
        toy.prepare(dataclasses.replace(request_, speaker_region=(0.0, 0.0, 0.01, 0.01)))


def test_memory_does_not_grow_with_length(toy: OmniHumanPipeline, request_: GenerateRequest, tmp_path: Path) -> None:
    def peak(seconds: float) -> int:
        sound = write_wav(tmp_path / f"{seconds}.wav", voice(seconds))
        clip = toy.prepare(dataclasses.replace(request_, audio=sound, num_steps=1))
        tokens = sum(c.tokens.nbytes for c in (clip.conditions.audio, clip.conditions.negative_audio))
        most = 0
        for piece in toy.frames(clip):
            del piece
            # Plain tensors alone: tests of compilation leave others behind, which have no memory to point to.
            plain = (torch.Tensor, torch.nn.Parameter)
            live = {t.untyped_storage().data_ptr(): t.nbytes for t in gc.get_objects() if type(t) in plain}
            most = max(most, sum(live.values()))
        return most - tokens

    gc.collect()
    short, long = peak(2.0), peak(8.0)
    assert long <= short * 1.02


def test_pipeline_refuses_a_request_for_another_model(toy: OmniHumanPipeline, request_: GenerateRequest) -> None:
    with pytest.raises(RequestError, match=r"^model: this pipeline holds"):
        toy(dataclasses.replace(request_, model="tiny"))
    with pytest.raises(RequestError, match=r"^sampler: must be one of .*euler"):
        toy(dataclasses.replace(request_, sampler="magic"))
    with pytest.raises(RequestError, match=r"^segment_frames: .*next length that fits is 21") as caught:
        toy(dataclasses.replace(request_, segment_frames=20))
    # What another request can do is no fault of the model.
    assert not isinstance(caught.value, ModelError)
    assert not request_.out.exists()


def test_frames_need_no_place_for_a_file(toy: OmniHumanPipeline, request_: GenerateRequest) -> None:
    nowhere = dataclasses.replace(request_, out="/proc/clip.mp4", num_steps=1)
    clip = toy.prepare(nowhere)
    once, again = (np.concatenate(list(toy.frames(clip))) for _ in range(2))
    assert len(once) == 25
    assert np.array_equal(again, once)
    with pytest.raises(RequestError, match=r"^out: cannot write"):
        toy(nowhere)


def test_inputs_of_the_programs_own(toy: OmniHumanPipeline, request_: GenerateRequest) -> None:
    read = read_inputs(request_)
    samples = np.frombuffer(read.waveform.tobytes(), np.float32)
    named = dataclasses.replace(request_, image="from memory", audio="from memory", num_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip = toy.prepare(named, dataclasses.replace(read, waveform=samples))
    want = toy.prepare(dataclasses.replace(request_, num_steps=1))
    assert torch.equal(clip.conditions.audio.tokens, want.conditions.audio.tokens)
    for change, answer in (
        ({"picture": read.picture.convert("RGBA")}, r"^image: .* mode RGBA"),
        ({"waveform": (samples * 32767).astype(np.int16)}, r"^audio: .* int16 samples"),
        ({"waveform": np.stack([samples, samples])}, r"^audio: .* shape \(2, "),
        ({"waveform": samples[:0]}, r"^audio: .* shape \(0,\)"),
    ):
        with pytest.raises(RequestError, match=answer):
            toy.prepare(named, dataclasses.replace(read, **change))


def test_inputs_read_beforehand_are_used(toy: OmniHumanPipeline, request_: GenerateRequest) -> None:
    inputs = read_inputs(request_)
    request_.audio.unlink()
    with pytest.raises(RequestError, match="audio"):
        toy.prepare(request_)
    assert toy.prepare(request_, inputs).num_frames == 25
    for name in ("image", "audio"):
        with pytest.raises(RequestError, match=f"^{name}: the inputs were read for another request"):
            toy.prepare(dataclasses.replace(request_, **{name: None}), inputs)
    with pytest.raises(RequestError, match="^num_steps"):
        toy.prepare(dataclasses.replace(request_, num_steps=0), inputs)


def test_words_and_sound_are_encoded_once(
    toy: OmniHumanPipeline, request_: GenerateRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[object] = []
    for name in ("text", "audio"):
        extractor = getattr(toy.components, f"{name}_extractor")
        extract = extractor.extract
        monkeypatch.setattr(extractor, "extract", lambda raw, extract=extract: heard.append(raw) or extract(raw))
    toy.prepare(request_)
    assert len(heard) == 2
    toy.prepare(dataclasses.replace(request_, negative_audio="silence"))
    assert len(heard) == 2 + 3


def test_sound_of_the_input_at_its_own_rate(toy: OmniHumanPipeline, request_: GenerateRequest, tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "hifi.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(44_100)
        file.writeframes((np.repeat(voice(0.5, 44_100), 2) * 32767).astype("<i2").tobytes())
    toy(dataclasses.replace(request_, audio=tmp_path / "hifi.wav"))
    with av.open(str(request_.out)) as container:
        stream = container.streams.audio[0]
        assert (stream.rate, stream.layout.name) == (44_100, "stereo")
